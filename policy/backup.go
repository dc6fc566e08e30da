package policy

import (
	"bytes"
	"fmt"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// BackupStatement returns the text by which an owner requests a backup of the root secret.
// It names the policy head, so that it is valid for the owners of one policy only.
func BackupStatement(a Approved) []byte {
	domain := ""
	if a.Genuine() {
		domain = a.doc.TrustDomain
	}
	return fmt.Appendf(nil, "schema = \"cohort/backup/v1\"\ntrust_domain = %q\ngenesis = %q\nhead = %q\n", domain, a.genesis, a.PolicyHead())
}

// AdmitBackup verifies that an owner of the policy in force requests a backup under it,
// and returns the owner's name. The statement must be [BackupStatement] byte for byte,
// signed in the namespace "cohort-backup".
func (a Approved) AdmitBackup(statement []byte, signature string) (string, error) {
	if !a.Genuine() {
		return "", errNothing
	}
	if want := BackupStatement(a); !bytes.Equal(statement, want) {
		return "", wire.Refuse(wire.Malformed, "backup: statement", string(statement), string(want))
	}
	return a.doc.Owners.Signer(signature, sshsig.ForBackup, statement)
}
