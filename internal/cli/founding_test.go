package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/founding"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// founders are an owner with a draft, and the machine that makes a root for it.
type founders struct {
	t                *testing.T
	key, file, state string
	draft            policydraft.Draft
	chip             *attesttest.Chip
}

func newFounders(t *testing.T) founders {
	t.Helper()
	vendor := attesttest.NewVendor()
	d := clitest.Draft(t)
	d.SoftRoots, d.Machines = []string{vendor.Root().String()}, []string{"chip:" + soft.ChipOf(vendor.Root())}
	d.Authority = []string{localtee.Reference(attest.Soft, localtee.Measurement{Program: wire.Sum([]byte("authority")).String()}, nil)}
	draft, err := policydraft.Parse([]byte(d.PolicyText()))
	if err != nil {
		t.Fatal(err)
	}
	owners, err := sshkey.Pairs(t.TempDir(), "owner-1", "owner-2", "owner-3")
	if err != nil {
		t.Fatal(err)
	}
	return founders{t, owners[0].Path, clitest.Write(t, "genesis.toml", d.PolicyText()), t.TempDir(), draft, vendor.Chip()}
}

// init is the file that a program of the machine printed for a root and a draft.
func (f founders) init(program string, root, draft wire.Digest) string {
	f.t.Helper()
	tee := f.chip.Attester(attesttest.Measure(program))
	r, err := founding.MakeRoot(f.t.Context(), tee, tee, root, draft, func(context.Context, attest.Evidence) (attest.Endorsements, error) { return nil, nil })
	if err != nil {
		f.t.Fatal(err)
	}
	return clitest.Write(f.t, "init.json", string(r.Bytes()))
}

func (f founders) sign(more ...string) result {
	f.t.Helper()
	args := append([]string{"policy", "sign", f.file, "--ssh-key", f.key, "--out", f.file + ".sig"}, more...)
	return run(f.t, map[string]string{"XDG_STATE_HOME": f.state}, args...)
}

// TestFoundersSign: the root is written into the founder's own copy, which is then
// signed; a second founder signs the filled file just the same.
func TestFoundersSign(t *testing.T) {
	f := newFounders(t)
	root := wire.Sum([]byte("root"))
	made := f.init("authority", root, f.draft.Digest())
	want, err := f.draft.WithRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if r := f.sign("--init", made); r.exit != frame.ExitDone {
			t.Fatalf("got %+v, want a signature", r)
		}
		text, err := os.ReadFile(f.file)
		if err != nil || !bytes.Equal(text, want) {
			t.Fatalf("got\n%s%v\nwant\n%s", text, err, want)
		}
		sig, err := os.ReadFile(f.file + ".sig")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sshsig.Verify(string(sig), sshsig.ForPolicy, want); err != nil {
			t.Error(err)
		}
	}
}

// TestFirstPolicyIsSignedWithEvidenceAlone: no command signs a first policy whose
// root was not shown, and none changes the founder's file then.
func TestFirstPolicyIsSignedWithEvidenceAlone(t *testing.T) {
	f := newFounders(t)
	root, other := wire.Sum([]byte("root")), wire.Sum([]byte("other"))
	filled, err := f.draft.WithRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	rows := []struct {
		name string
		file string
		args []string
		want wire.Reason
	}{
		{"a draft alone", string(f.draft.Source()), nil, wire.EvidenceMissing},
		{"a filled one alone", string(filled), nil, wire.EvidenceMissing},
		{"a program of the operator's", string(filled), []string{"--init", f.init("evil", root, f.draft.Digest())}, wire.NotMeasured},
		{"a root for another draft", string(f.draft.Source()), []string{"--init", f.init("authority", root, other)}, wire.WrongDraft},
		{"another root", string(filled), []string{"--init", f.init("authority", other, f.draft.Digest())}, wire.WrongRoot},
		{"no output of init", string(filled), []string{"--init", clitest.Write(t, "init.json", "{}")}, wire.Malformed},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if err := os.WriteFile(f.file, []byte(row.file), 0o600); err != nil {
				t.Fatal(err)
			}
			r := f.sign(row.args...)
			if r.exit != frame.ExitRefused || !strings.Contains(r.talk, "["+string(row.want)+"]") {
				t.Errorf("got %+v, want exit 1 and [%s]", r, row.want)
			}
			if _, err := os.Stat(f.file + ".sig"); err == nil {
				t.Error("got a signature")
			}
			if text, _ := os.ReadFile(f.file); string(text) != row.file {
				t.Error("the file was changed")
			}
		})
	}
	a := &frame.App{Stdout: new(bytes.Buffer), Stderr: new(bytes.Buffer), Env: func(string) (string, bool) { return "", false }}
	if _, err := sshkey.SignPolicy(a, f.key, filled); wire.ReasonOf(err) != wire.EvidenceMissing {
		t.Errorf("proposing or approving a first policy: got %v, want [%s]", err, wire.EvidenceMissing)
	}
}

// TestCheckDraft: `policy check` prints a draft's digest, and what "any" machine means.
func TestCheckDraft(t *testing.T) {
	d := clitest.Draft(t)
	r := run(t, nil, "policy", "check", clitest.Write(t, "genesis.toml", d.PolicyText()))
	draft, err := policydraft.Parse([]byte(d.PolicyText()))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{fmt.Sprint("draft     ", draft.Digest()), "none yet", "ANY: an attacker who can forge"} {
		if r.exit != frame.ExitDone || !strings.Contains(r.out, want) {
			t.Errorf("got %+v, want %q", r, want)
		}
	}
	named := newFounders(t)
	if r := run(t, nil, "policy", "check", named.file); strings.Contains(r.out, "ANY: ") || !strings.Contains(r.out, "machines that may hold the root: ") {
		t.Errorf("got %+v, want the machines", r)
	}
}
