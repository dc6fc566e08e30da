package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// approvedTwice makes a history of two policies, and gives both stages of it.
func approvedTwice(t *testing.T) (first, second policy.Approved) {
	t.Helper()
	first, second, _ = approvedForks(t)
	return first, second
}

// approvedForks makes two histories of one genesis, and gives their stages.
func approvedForks(t *testing.T) (first, second, fork policy.Approved) {
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
	draft, err := policy.ParseDraft([]byte(d.text()))
	if err != nil {
		t.Fatal(err)
	}
	raw := draft.Document().Raw()
	if first, err = policy.Genesis(wire.Sum(raw), step(raw)); err != nil {
		t.Fatal(err)
	}
	next := func(created time.Time) policy.Approved {
		raw, err := successor(first.Document().Raw(), created)
		if err != nil {
			t.Fatal(err)
		}
		approved, err := first.Next(step(raw))
		if err != nil {
			t.Fatal(err)
		}
		return approved
	}
	return first, next(d.created.Add(time.Hour)), next(d.created.Add(2 * time.Hour))
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

// TestTrustBeginsAtAnAuthority: who has a gateway alone is told what is missing.
func TestTrustBeginsAtAnAuthority(t *testing.T) {
	const begins = "trust begins with evidence of an authority, and no gateway stands in for one"
	args := []string{"request", "https://scoring.test/", "--session", "--gateway", "https://127.0.0.1:1", "--genesis", strings.Repeat("1", 64), "--task", "scoring", "--state", filepath.Join(t.TempDir(), "seen.json")}
	if got := run(t, nil, args...); got.exit != exitUsage || !strings.Contains(got.talk, begins) {
		t.Errorf("without an authority: got %+v, want exit %d and %q", got, exitUsage, begins)
	}
	args = append(args, "--authority", "https://127.0.0.1:1")
	if got := run(t, nil, args...); got.exit != exitUnreachable || !strings.Contains(got.talk, "\nhint: ") || !strings.Contains(got.talk, begins) {
		t.Errorf("with one that is away: got %+v, want exit %d and %q", got, exitUnreachable, begins)
	}
}
