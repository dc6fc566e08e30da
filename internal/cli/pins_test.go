package cli

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// approvedTwice makes a history of two policies, and gives both stages of it.
func approvedTwice(t *testing.T) (first, second policy.Approved) {
	t.Helper()
	o := owner{name: "one", path: t.TempDir() + "/one"}
	if err := writeSSHKey(o); err != nil {
		t.Fatal(err)
	}
	d := testDraft(t)
	var err error
	if d.owners, err = ownerLines([]string{o.name + "=" + o.path + ".pub"}); err != nil {
		t.Fatal(err)
	}
	d.quorum = 1
	step := func(raw []byte) policy.Step {
		pem, err := os.ReadFile(o.path)
		if err != nil {
			t.Fatal(err)
		}
		signer, err := ssh.ParsePrivateKey(pem)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := policy.Sign(signer, policy.ForPolicy, raw)
		if err != nil {
			t.Fatal(err)
		}
		return policy.Step{Policy: raw, Signatures: []string{sig}}
	}
	raw := []byte(d.text())
	if first, err = policy.Genesis(wire.Sum(raw), step(raw)); err != nil {
		t.Fatal(err)
	}
	next, err := successor(first.Document(), d.created.Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if second, err = first.Next(step(next)); err != nil {
		t.Fatal(err)
	}
	return first, second
}

func TestAuthorityBehindWhatWasSeenIsRefused(t *testing.T) {
	first, second := approvedTwice(t)
	tests := []struct {
		name            string
		authority, seen policy.Approved
		want            error
	}{
		{"nothing seen", first, policy.Approved{}, nil},
		{"the same", first, first, nil},
		{"newer than seen", second, first, nil},
		{"older than seen", first, second, wire.Behind},
	}
	for _, tt := range tests {
		if err := (authorityClient{policy: tt.authority}).knows(tt.seen); !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.want)
		}
	}
}
