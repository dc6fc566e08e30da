package policy

import (
	"fmt"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// house signs and approves the fixture's policies.
type house struct{ *policytest.House }

func newHouse() *house { return &house{policytest.NewHouse()} }

func newGroupHouse() *house { return &house{policytest.NewGroupHouse()} }

func (h *house) sign(t testing.TB, ns sshsig.Namespace, raw []byte, names ...string) []string {
	t.Helper()
	var out []string
	for _, name := range names {
		sig, err := sshsig.Sign(h.Owners[name], ns, raw)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, sig)
	}
	return out
}

func (h *house) step(t testing.TB, raw []byte, names ...string) Step {
	t.Helper()
	return Step{raw, h.sign(t, sshsig.ForPolicy, raw, names...)}
}

// found returns the approved genesis.
func (h *house) found(t testing.TB, edits ...string) Approved {
	t.Helper()
	raw := h.Text(t, edits...)
	a, err := Genesis(wire.Sum(raw), h.step(t, raw, "ana", "ben"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// next returns the text of the policy after a, with edits.
func (h *house) next(t testing.TB, a Approved, edits ...string) []byte {
	t.Helper()
	d := a.Document()
	place := []string{
		"sequence     = 1\n", fmt.Sprintf("sequence     = %d\n", d.Sequence+1),
		`previous     = ""`, fmt.Sprintf("previous     = %q", d.Digest()),
	}
	return h.Text(t, append(place, edits...)...)
}

func mustParse(t testing.TB, raw []byte) *policyfile.Document {
	t.Helper()
	d, err := policyfile.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestGoodPolicy(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	next, err := a.Next(h.step(t, h.next(t, a), "ben", "eva"))
	if err != nil {
		t.Fatal(err)
	}
	if got := next.Document().Sequence; got != 2 {
		t.Errorf("got sequence %d, want 2", got)
	}
}
