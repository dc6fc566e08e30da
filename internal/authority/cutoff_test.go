package authority

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// change adopts the policy that follows, edited.
func (w *world) change(a *Authority, edits ...string) {
	w.t.Helper()
	step := w.signed(w.after(a.current.Load().approved, edits...), "ana", "ben")
	p, err := a.propose(w.t.Context(), api.ProposeRequest{Policy: step.Policy, Signatures: step.Signatures})
	if err != nil || p.State != "adopted" {
		w.t.Fatalf("got state %q, %v, want adopted at once", p.State, err)
	}
}

// TestCutUnit cuts one unit off by its id: it gets no further certificate though
// the delay is an hour, the others get keys that it never saw, and other tasks
// keep theirs.
func TestCutUnit(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	bad, good, keys := w.scoring(), w.scoring(), w.applicant("keys")
	before := must(bad.enrol(direct{a}))
	other := must(keys.enrol(direct{a}))
	id := wire.UnitIDOf(must(x509.MarshalPKIXPublicKey(&bad.signing.PublicKey)))
	w.change(a, "calls = [\"keys\"]\n", fmt.Sprintf("calls = [\"keys\"]\ncut_units = [%q]\n", id))

	_, err := bad.enrol(direct{a})
	wantReason(t, err, wire.CutOff)
	after := must(good.enrol(direct{a}))
	wantCut(t, "strict", before.Rings.Strict, after.Rings.Strict)
	wantCut(t, "follow", before.Rings.Follow, after.Rings.Follow)
	again := must(keys.enrol(direct{a}))
	wantKey(t, "current key of a task that is not cut", again.Rings.Strict.Current, other.Rings.Strict.Current)
}

// wantCut demands that next was dropped, that current is fresh, and that what was
// current still opens sessions.
func wantCut(t *testing.T, what string, before, after api.RingKeys) {
	t.Helper()
	if n := shared(keysOf(before), [][]byte{after.Current.Key, after.Next.Key}); n != 0 {
		t.Errorf("%s: %d of the keys that the cut unit holds are current or next", what, n)
	}
	if after.Previous == nil || !bytes.Equal(after.Previous.Key, before.Current.Key) {
		t.Errorf("%s: what was current opens nothing any more", what)
	}
}

// TestCutRelease removes a release: its units get nothing from then on, and the
// certificate that they have ends within one life.
func TestCutRelease(t *testing.T) {
	w := newWorld(t, withReleases()...)
	a := w.open()
	before := must(w.older().enrol(direct{a}))
	newer := must(w.newest().enrol(direct{a}))
	w.change(a, "[task.scoring.release.\"2026.10\"]\nreference = [ { platform = \"soft\", program = \""+wire.Sum([]byte("older")).String()+"\" } ]\n", "",
		"continues = \"2026.10\"\n", "")
	_, err := w.older().enrol(direct{a})
	wantReason(t, err, wire.NotMeasured)
	wantCut(t, "strict", newer.Rings.Strict, must(w.newest().enrol(direct{a})).Rings.Strict)
	now, _ := w.clock.read()
	if left := before.NotAfter.Sub(now); left > time.Hour {
		t.Errorf("got %v left of the removed release's certificate, want at most one life", left)
	}
}

// TestLooseningCutsNothing adds a name: ring keys stay.
func TestLooseningCutsNothing(t *testing.T) {
	w := newWorld(t, `delay = "1h"`, `delay = "0s"`)
	a := w.open()
	before := must(w.scoring().enrol(direct{a}))
	w.change(a, `"scoring.clinic.example"`, `"scoring.clinic.example", "more.clinic.example"`)
	after := must(w.scoring().enrol(direct{a}))
	wantKey(t, "current", after.Rings.Strict.Current, before.Rings.Strict.Current)
	wantKey(t, "next", after.Rings.Strict.Next, before.Rings.Strict.Next)
}

// TestRestartedAfterCut: an authority that read the cut from the store enforces
// it as well.
func TestRestartedAfterCut(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	bad := w.scoring()
	id := wire.UnitIDOf(must(x509.MarshalPKIXPublicKey(&bad.signing.PublicKey)))
	must(bad.enrol(direct{a}))
	w.change(a, "calls = [\"keys\"]\n", fmt.Sprintf("calls = [\"keys\"]\ncut_units = [%q]\n", id))
	_, err := bad.enrol(direct{w.open()})
	wantReason(t, err, wire.CutOff)
}
