package policy

import (
	"bytes"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// TestAdmitBackup: only owners may request a backup, only under the policy in force, and only
// with a signature for that use.
func TestAdmitBackup(t *testing.T) {
	h := newHouse()
	h.Owners["mallory"] = policytest.Fixed("mallory")
	a := h.found(t)
	good := BackupStatement(a)
	for _, owner := range []string{"ana", "ben", "eva"} {
		if got, err := a.AdmitBackup(good, h.sign(t, sshsig.ForBackup, good, owner)[0]); err != nil || got != owner {
			t.Errorf("%s: got %q, %v", owner, got, err)
		}
	}
	next, err := a.Next(h.step(t, h.next(t, a, `lifetime = "30m"`, `lifetime = "29m"`), "ana", "ben"))
	if err != nil {
		t.Fatal(err)
	}
	more := append(bytes.Clone(good), '\n')
	for _, row := range []struct {
		name      string
		in        Approved
		statement []byte
		namespace sshsig.Namespace
		signer    string
		want      attest.Reason
	}{
		{"a stranger", a, good, sshsig.ForBackup, "mallory", wire.NotOwner},
		{"a signature for another use", a, good, sshsig.ForPolicy, "ana", wire.BadSignature},
		{"a line more", a, more, sshsig.ForBackup, "ana", wire.Malformed},
		{"nothing", a, nil, sshsig.ForBackup, "ana", wire.Malformed},
		{"under the policy before", next, good, sshsig.ForBackup, "ana", wire.Malformed},
		{"under nothing", Approved{}, BackupStatement(Approved{}), sshsig.ForBackup, "ana", wire.ReasonOf(errNothing)},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, err := row.in.AdmitBackup(row.statement, h.sign(t, row.namespace, row.statement, row.signer)[0])
			policytest.Refused(t, err, row.want)
			if got != "" {
				t.Errorf("got owner %q with an error", got)
			}
		})
	}
	_, err = a.AdmitBackup(good, h.sign(t, sshsig.ForBackup, more, "ana")[0])
	policytest.Refused(t, err, wire.BadSignature)
}

// TestOwnersDigest: the digest changes with each value that decides who can restore a backup, and
// with no other value.
func TestOwnersDigest(t *testing.T) {
	h := newHouse()
	h.Owners["another"] = policytest.Fixed("another")
	of := func(edits ...string) attest.Digest { return mustParse(t, h.Text(t, edits...)).Owners.Digest() }
	good := of()
	for name, edits := range map[string][]string{
		"quorum":   {"quorum = 2", "quorum = 3"},
		"name":     {`"ana"`, `"anna"`},
		"key":      {`ssh = "ANA"`, `ssh = "ANOTHER"`},
		"age":      {`ssh = "ANA"`, `ssh = "ANA", age = "` + policytest.AgeRecipient + `"`},
		"one more": {`ssh = "EVA" },`, `ssh = "EVA" }, { name = "una", ssh = "ANOTHER" },`},
		"one less": {`  { name = "eva", ssh = "EVA" },` + "\n", ""},
	} {
		if of(edits...) == good {
			t.Errorf("%s: got the same digest", name)
		}
	}
	for name, edits := range map[string][]string{
		"delay":          {`delay = "1h"`, `delay = "2h"`},
		"approve_within": {`"168h"`, `"24h"`},
		"a task":         {`lifetime = "30m"`, `lifetime = "29m"`},
	} {
		if of(edits...) != good {
			t.Errorf("%s: got another digest", name)
		}
	}
}
