package policy

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// TestDraftIsItsGenesisWithoutTheRoot: WithRoot changes the root's value and no other byte, and
// the history knows its genesis' draft.
func TestDraftIsItsGenesisWithoutTheRoot(t *testing.T) {
	h := newHouse()
	raw := h.Text(t, "sha256:"+strings.Repeat("3", 64), "")
	d, err := policydraft.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	root := wire.Sum([]byte("root"))
	genesis, err := d.WithRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	if want := bytes.Replace(raw, []byte(`root = ""`), fmt.Appendf(nil, "root = %q", root), 1); !bytes.Equal(genesis, want) {
		t.Errorf("got\n%s\nwant\n%s", genesis, want)
	}
	if !bytes.Equal(d.Source(), raw) || d.Digest() != wire.Hash(wire.LabelDraft, raw) {
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
	filled, err := policydraft.Parse(genesis)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := filled.WithRoot(root); err != nil || !bytes.Equal(again, genesis) || filled.Digest() != d.Digest() {
		t.Errorf("filling a second time: %v", err)
	}
	_, err = filled.WithRoot(wire.Sum([]byte("another")))
	policytest.Refused(t, err, wire.WrongRoot)
}
