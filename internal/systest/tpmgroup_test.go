package systest

import (
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestTPMGroup: on a TPM the secret of a roster is sealed to the programs and the boot of
// the authorities that the roster names. Those programs unseal it, in later starts too, and
// return the same root; another program of the policy, and a machine that booted
// differently, do not. A party that challenges the TPM gets evidence for the root only if,
// since boot, the machine has launched nothing but authorities that the roster names.
func TestTPMGroup(t *testing.T) {
	v := newMachine(t)
	v.pass(time.Since(v.wall())) // cohort uses the system clock
	north := testworld.NewKey()
	v.group = fmt.Sprintf("[group.trial]\nkey_mode = \"shared\"\nquorum = 1\nuntil = %s\n"+
		"authority = { machines = \"any\", platform = { tpm = { roots = [%q] } }, reference = [ %s, %s ] }\nparty = [ { name = \"north\", ssh = %q } ]\n[group.trial.role]\n%s",
		v.wall().Add(24*time.Hour).UTC().Format(time.RFC3339), v.root(attest.TPM), tpmReference(v.measured("authority")), tpmReference(v.measured("authority 2")), north.AuthorizedKey(),
		"scorer = { members = [ { party = \"north\", task = \"scoring\", release = \"1\" } ] }\n")
	e := settle(t, v, attest.TPM)
	roster := e.Approved().GroupByName("trial")
	_, err := authorityOf(t, e.Cluster).GroupRoot(t.Context(), "trial", api.GroupRootRequest{Nonce: make([]byte, 32)})
	wantRule(t, err, wire.GroupElsewhere, "launch 2 since boot") // a unit's program was launched on that machine too
	e.wantShown("a unit's program launched", groupStatus, "note: the root of group trial: ", string(wire.GroupElsewhere))
	e.wantShown("a unit's program launched", "status", "WARNING: no root of group trial")
	v.boot("quiet")
	again := *e.Cluster
	again.addr = loopback.FreeAddress(t)
	tee, _ := v.launch("authority")
	e.open(&again, tee, tee)
	shown, digest := e.groupRoot(authorityOf(t, &again))
	if shown.Roster != roster.ID() {
		t.Fatalf("got the root of roster %v, want %v", shown.Roster, roster.ID())
	}
	again.wantShown("after a boot", groupStatus, "root     "+digest.String())
	for _, program := range []string{"authority", "authority 2"} {
		if keys, err := e.openGroup(program); err != nil || keys.RootDigest() != digest {
			t.Fatalf("a later start of %s: %v", program, err)
		}
	}
	_, err = e.openGroup("scoring 1")
	wantRule(t, err, wire.NotMeasured, "measurement: program")
	v.boot("quiet init=/bin/sh")
	_, err = e.openGroup("authority")
	wantRule(t, err, wire.NotMeasured, "measurement: pcr8")
	v.boot("quiet")
	if keys, err := e.openGroup("authority"); err != nil || keys.RootDigest() != digest {
		t.Errorf("the machine as it was: %v", err)
	}
}

// groupRoot requests the group's root as a party does, and appraises the response with the
// roster's reference values: an authority on a TPM sends its introduction first.
func (e *estate) groupRoot(a *api.Authority) (api.GroupRoot, wire.Digest) {
	e.t.Helper()
	roster := e.Approved().GroupByName("trial").Roster
	nonce := make([]byte, 32)
	ask := func(credential []byte) (api.GroupRoot, attest.Evidence) {
		r, err := a.GroupRoot(e.t.Context(), "trial", api.GroupRootRequest{Nonce: nonce, Credential: credential})
		if err != nil {
			e.t.Fatal(err)
		}
		var evidence attest.Evidence
		if err := evidence.UnmarshalJSON(r.Evidence); err != nil {
			e.t.Fatal(err)
		}
		return r, evidence
	}
	_, unverified := ask(nil)
	in, introduced, err := verifier().UnverifiedKeys(unverified)
	if err != nil || !introduced {
		e.t.Fatalf("got introduced %v, %v", introduced, err)
	}
	challenge, err := verifier().Challenge(attest.TPM, in)
	if err != nil {
		e.t.Fatal(err)
	}
	r, evidence := ask(challenge.Credential)
	root, err := x509.ParseCertificate(r.Root)
	if err != nil {
		e.t.Fatal(err)
	}
	digest := wire.Sum(root.RawSubjectPublicKeyInfo)
	result, err := verifier().Appraise(attest.Question{
		Evidence: evidence, ReportData: identity.GroupRootData(nonce, r.Roster, digest), Secret: challenge.SecretFor, Rules: roster.AuthorityRules(), At: e.wall(),
	})
	if err == nil {
		err = roster.AdmitAuthority(result)
	}
	if err != nil {
		e.t.Fatalf("appraising the root of the group: %v", err)
	}
	return r, digest
}

// openGroup unseals the secret of the roster as a new start of a program.
func (e *estate) openGroup(program string) (*identity.GroupKeys, error) {
	e.t.Helper()
	id := e.Approved().GroupByName("trial").ID()
	row, err := e.db.Group(e.t.Context(), id)
	if err != nil || row.Key == nil {
		e.t.Fatalf("got row %x, %v", row.Key, err)
	}
	tee, _ := e.launch(program)
	plain, err := tee.Unseal(e.t.Context(), row.Content)
	if err != nil {
		return nil, err
	}
	return identity.OpenGroup(plain, id)
}
