package policy

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// threes is the root of the good policy.
var threes = strings.Repeat("3", 64)

// draftCases are edits of the good policy, and the draft that is seen in it.
var draftCases = []struct {
	name, note string
	edits      []string
}{
	{"empty", "as founders write it", []string{"sha256:" + threes, ""}},
	{"filled", "the genesis: the same draft", nil},
	{"filled-otherwise", "another root: the same draft", []string{threes, strings.Repeat("4", 64)}},
	{"comment-behind", "the rest of the line is part of the draft", []string{`root = "sha256:` + threes + `"`, `root = "" # of our machine`}},
	{"other-machines", "one more machine: another draft", []string{"sha256:" + threes, "", `["chip:0123456789abcdef"]`, `["chip:0123456789abcdef", "chip:1111111111111111"]`}},
	{"line-elsewhere", "a line in another table is none", []string{"sha256:" + threes, "", `env = { LANG = "C" }`, "env.LANG = \"\"\"\nroot = \"\"\n\"\"\""}},
	{"table-twice", "two tables, which TOML refuses too", []string{"sha256:" + threes, "", "[measured.agent-1]", "[authority.more]\n[authority]\nroot = \"\"\n[measured.agent-1]"}},
	{"no-line", "spaces that the line does not have", []string{`root = "sha256:` + threes, `root  = "`}},
	{"three-quotes", "TOML would read on", []string{`"sha256:` + threes + `"`, `"""` + "\n\"\"\""}},
	{"half-a-root", "neither empty nor a digest", []string{threes, strings.Repeat("3", 63)}},
	{"text-that-looks-like-it", "the line inside a text, and the root elsewhere", []string{
		`env = { LANG = "C" }`, "env.LANG = \"\"\"\n[authority]\nroot = \"\"\n\"\"\"", "[authority]\nroot = \"sha256:" + threes, "[ authority ]\nroot = \"sha256:" + threes}},
	{"second-policy", "only the first policy has a draft", []string{"sha256:" + threes, "", "sequence     = 1", "sequence     = 2", `previous     = ""`, `previous     = "sha256:` + threes + `"`}},
}

// TestDraftVectors reads files of a header, an empty line and a policy.
func TestDraftVectors(t *testing.T) {
	if *policytest.Update {
		h := newHouse()
		for _, c := range draftCases {
			raw := h.Text(t, c.edits...)
			policytest.WriteVector(t, fmt.Sprintf("note: %s\n%s\n%s", c.note, draftVerdict(raw), raw), "draft", c.name+".txt")
		}
	}
	for _, path := range policytest.Files(t, "draft/*.txt") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			head, raw, _ := strings.Cut(policytest.ReadVector(t, "draft", filepath.Base(path)), "\n\n")
			_, want, _ := strings.Cut(head, "\n")
			if got := strings.TrimSuffix(draftVerdict([]byte(raw)), "\n"); got != want {
				t.Errorf("got %s\nwant %s", got, want)
			}
		})
	}
}

func draftVerdict(raw []byte) string {
	d, err := ParseDraft(raw)
	var faults policyfile.Faults
	if errors.As(err, &faults) {
		return fmt.Sprintf("expect: policy, %s: %s\n", faults[0].Path, faults[0].Rule)
	}
	root := ""
	if !d.Root().IsZero() {
		root = ", root " + d.Root().String()
	}
	return fmt.Sprintf("expect: accepted%s\ndraft: %s\n", root, d.Digest())
}

// TestDraftIsItsGenesisWithoutTheRoot: filling changes the value and no other byte,
// and the history knows the draft that its genesis was.
func TestDraftIsItsGenesisWithoutTheRoot(t *testing.T) {
	h := newHouse()
	raw := h.Text(t, "sha256:"+threes, "")
	d, err := ParseDraft(raw)
	if err != nil {
		t.Fatal(err)
	}
	root := wire.Sum([]byte("root"))
	genesis, err := d.Fill(root)
	if err != nil {
		t.Fatal(err)
	}
	if want := bytes.Replace(raw, []byte(`root = ""`), fmt.Appendf(nil, "root = %q", root), 1); !bytes.Equal(genesis, want) {
		t.Errorf("got\n%s\nwant\n%s", genesis, want)
	}
	if !bytes.Equal(d.Raw(), raw) || d.Digest() != wire.Hash(wire.LabelDraft, raw) {
		t.Error("got another text or digest than the file's")
	}
	a, err := Genesis(wire.Sum(genesis), Step{Policy: genesis, Signatures: h.sign(t, sshsig.ForPolicy, genesis, "ana", "ben")})
	if err != nil {
		t.Fatal(err)
	}
	next := h.next(t, a, `lifetime = "30m"`, `lifetime = "20m"`)
	b, err := a.Next(Step{Policy: next, Signatures: h.sign(t, sshsig.ForPolicy, next, "ana", "ben")})
	if err != nil {
		t.Fatal(err)
	}
	if a.Draft() != d.Digest() || b.Draft() != d.Digest() || a.Document().Authority.Root != root || (Approved{}).Draft() != (attest.Digest{}) {
		t.Errorf("got drafts %v and %v, want %v after every step", a.Draft(), b.Draft(), d.Digest())
	}
	filled, err := ParseDraft(genesis)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := filled.Fill(root); err != nil || !bytes.Equal(again, genesis) || filled.Digest() != d.Digest() {
		t.Errorf("filling a second time: %v", err)
	}
	_, err = filled.Fill(wire.Sum([]byte("another")))
	policytest.Refused(t, err, wire.WrongRoot)
}

// FuzzDraft: whatever is a draft becomes, with any root, a genesis whose draft it is
// and whose root that is.
func FuzzDraft(f *testing.F) {
	h := newHouse()
	for _, c := range draftCases {
		f.Add(h.Text(f, c.edits...))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		root := wire.Sum([]byte("root"))
		d, err := ParseDraft(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(d.Raw(), raw) {
			t.Fatal("got another text than was read")
		}
		if !d.Root().IsZero() {
			root = d.Root()
		}
		genesis, err := d.Fill(root)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := policyfile.Parse(genesis)
		if err != nil || doc.Authority.Root != root {
			t.Fatalf("got %v under root %v", err, root)
		}
		if again, err := ParseDraft(genesis); err != nil || again.Digest() != d.Digest() {
			t.Fatalf("got draft %v (%v), want %v", again.Digest(), err, d.Digest())
		}
	})
}
