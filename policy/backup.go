package policy

import (
	"bytes"
	"fmt"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// BackupStatement is the text by which an owner asks for a backup of the root
// secret. It names the policy head, so that it is good for the owners of one
// policy alone.
func BackupStatement(a Approved) []byte {
	domain := ""
	if a.OK() {
		domain = a.doc.TrustDomain
	}
	return fmt.Appendf(nil, "schema = \"cohort/backup/v1\"\ntrust_domain = %q\ngenesis = %q\nhead = %q\n", domain, a.genesis, a.Head())
}

// AdmitBackup demands that an owner of the policy in force asks for a backup
// under it, and gives his name. The statement is [BackupStatement] byte for
// byte, signed in the namespace "cohort-backup".
func (a Approved) AdmitBackup(statement []byte, signature string) (string, error) {
	if !a.OK() {
		return "", errNothing
	}
	if want := BackupStatement(a); !bytes.Equal(statement, want) {
		return "", wire.Refuse(wire.Malformed, "backup: statement", string(statement), string(want))
	}
	return a.doc.Owners.Signer(signature, sshsig.ForBackup, statement)
}
