package policydraft

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// threes is the root of the good policy, 64 digits.
var threes = strings.Repeat("3", 64)

// draftCases are edits of the good policy, each with a note about its draft.
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

// TestDraftVectors parses files with a header, an empty line and a policy.
func TestDraftVectors(t *testing.T) {
	if *policytest.Update {
		h := policytest.NewHouse()
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
	d, err := Parse(raw)
	var faults policytoml.Faults
	if errors.As(err, &faults) {
		return fmt.Sprintf("expect: policy, %s: %s\n", faults[0].Path, faults[0].Rule)
	}
	root := ""
	if !d.NamedRoot().IsZero() {
		root = ", root " + d.NamedRoot().String()
	}
	return fmt.Sprintf("expect: accepted%s\ndraft: %s\n", root, d.Digest())
}

// FuzzDraft: every accepted draft can be given any root, and the resulting genesis has that draft
// and that root.
func FuzzDraft(f *testing.F) {
	h := policytest.NewHouse()
	for _, c := range draftCases {
		f.Add(h.Text(f, c.edits...))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		root := wire.Sum([]byte("root"))
		d, err := Parse(raw)
		if err != nil {
			return
		}
		if !bytes.Equal(d.Source(), raw) {
			t.Fatal("got another text than was read")
		}
		if !d.NamedRoot().IsZero() {
			root = d.NamedRoot()
		}
		genesis, err := d.WithRoot(root)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := policyfile.Parse(genesis)
		if err != nil || doc.Authority.Root != root {
			t.Fatalf("got %v under root %v", err, root)
		}
		if again, err := Parse(genesis); err != nil || again.Digest() != d.Digest() {
			t.Fatalf("got draft %v (%v), want %v", again.Digest(), err, d.Digest())
		}
	})
}
