package authority

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/ringkeys"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// change adopts the next policy, with edits.
func (w *world) change(a *Authority, edits ...string) {
	w.T.Helper()
	step := w.SignPolicy(w.NextText(a.inForce().approved, edits...), "ana", "ben")
	p, err := a.history.Propose(w.T.Context(), api.ProposeRequest{Policy: step.Policy, Signatures: step.Signatures})
	if err != nil || p.State != "adopted" {
		w.T.Fatalf("got state %q, %v, want adopted at once", p.State, err)
	}
}

// TestCutUnit cuts off one unit by its id. It gets no further certificate, at once although the
// delay is an hour. Other units of the task get ring keys that it never had, and other tasks keep
// theirs.
func TestCutUnit(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	bad, good, keys := w.scoring(), w.scoring(), w.applicant("keys")
	before := testworld.Must(bad.enrol(direct{a}))
	other := testworld.Must(keys.enrol(direct{a}))
	id := wire.UnitIDOf(testworld.Must(x509.MarshalPKIXPublicKey(&bad.signing.PublicKey)))
	w.change(a, "calls = [\"keys\"]\n", fmt.Sprintf("calls = [\"keys\"]\ncut_units = [%q]\n", id))

	_, err := bad.enrol(direct{a})
	testworld.Refused(t, err, wire.CutOff)
	after := testworld.Must(good.enrol(direct{a}))
	wantCut(t, "strict", before.Rings.Strict, after.Rings.Strict)
	wantCut(t, "follow", before.Rings.Follow, after.Rings.Follow)
	again := testworld.Must(keys.enrol(direct{a}))
	wantKey(t, "current key of a task that is not cut", again.Rings.Strict.Current, other.Rings.Strict.Current)
}

// wantCut demands that after contains no key of before, and no previous key.
func wantCut(t *testing.T, what string, before, after api.RingKeys) {
	t.Helper()
	if n := shared(keysOf(before), keysOf(after)); n != 0 || after.Previous != nil {
		t.Errorf("%s: %d of the keys that the cut unit holds are given out, and a previous one %v; want none", what, n, after.Previous != nil)
	}
}

// TestCutRelease removes a release: its units get no further certificate, and the certificates
// that they have end within one lifetime.
func TestCutRelease(t *testing.T) {
	w := newWorld(t, withReleases()...)
	a := w.open()
	before := testworld.Must(w.older().enrol(direct{a}))
	newer := testworld.Must(w.newest().enrol(direct{a}))
	w.change(a, "[task.scoring.release.\"2026.10\"]\nreference = [ { platform = \"soft\", program = \""+wire.Sum([]byte("older")).String()+"\" } ]\n", "",
		"continues = \"2026.10\"\n", "")
	_, err := w.older().enrol(direct{a})
	testworld.Refused(t, err, wire.NotMeasured)
	again := testworld.Must(w.newest().enrol(direct{a}))
	wantKey(t, "strict key of a release that the removed one held nothing of", again.Rings.Strict.Current, newer.Rings.Strict.Current)
	wantKey(t, "follow key of a release that the removed one held nothing of", again.Rings.Follow.Current, newer.Rings.Follow.Current)
	now, _ := w.clock.Read()
	if left := before.NotAfter.Sub(now); left > time.Hour {
		t.Errorf("got %v left of the removed release's certificate, want at most one life", left)
	}
}

// TestCutSuccessor removes a release that continues another: the follow keys of the releases
// before it are replaced, and their strict keys stay.
func TestCutSuccessor(t *testing.T) {
	w := newWorld(t, withReleases()...)
	a := w.open()
	old, middle := testworld.Must(w.older().enrol(direct{a})), testworld.Must(w.scoring().enrol(direct{a}))
	w.change(a, "[task.scoring.release.\"2026.12\"]\ncontinues = \"2026.11\"\nreference = [ { platform = \"soft\", program = \""+wire.Sum([]byte("newest")).String()+"\" } ]\n", "")
	after := testworld.Must(w.scoring().enrol(direct{a}))
	wantCut(t, "follow", middle.Rings.Follow, after.Rings.Follow)
	wantKey(t, "strict", after.Rings.Strict.Current, middle.Rings.Strict.Current)
	first := testworld.Must(w.older().enrol(direct{a}))
	wantCut(t, "follow, of the first", old.Rings.Follow, first.Rings.Follow)
	wantCut(t, "inherited", middle.Rings.Inherited.RingKeys, after.Rings.Inherited.RingKeys)
	wantKey(t, "strict, of the first", first.Rings.Strict.Current, old.Rings.Strict.Current)
}

// TestOldPolicyCutsNothing: an enrolment decided under a policy older than the one in force does
// not change a ring back. An enrolment under a policy newer than the ring's gets none of the old
// keys.
func TestOldPolicyCutsNothing(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	before := testworld.Must(w.scoring().enrol(direct{a}))
	old, now := a.inForce(), testworld.Must(a.clock.Now())
	w.change(a, "calls = [\"keys\"]\n", fmt.Sprintf("calls = [\"keys\"]\ncut_units = [%q]\n", wire.UnitID{1}))
	next := a.inForce().approved
	strict, _ := a.rings.KeysOf(before.Identity)
	current := strict.Current.ID()
	a.rings.Apply(old.approved, now)
	if strict, _ = a.rings.KeysOf(before.Identity); strict.Current.ID() != current {
		t.Error("an older policy changed the ring")
	}
	a.rings.Apply(next, now)
	if strict, _ = a.rings.KeysOf(before.Identity); strict.Current.ID() != current {
		t.Error("an older policy was noted as the one applied")
	}
	late := ringkeys.New(ringkeys.Config{})
	grant := policy.Grant{Task: old.document().Tasks["scoring"], Release: old.document().Tasks["scoring"].Releases["2026.11"]}
	kept, _, err := late.AddKeys(ringkeys.Request{Approved: old.approved, Grant: grant, At: now})
	if err != nil {
		t.Fatal(err)
	}
	returned, _, err := late.AddKeys(ringkeys.Request{Approved: next, Grant: grant, At: now})
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(returned.Strict.Current.Key, kept.Strict.Current.Key) || returned.Strict.Previous != nil {
		t.Error("a ring that the newest policy was not applied to is returned")
	}
}

// TestLooseningCutsNothing: a policy that adds a name does not change ring keys.
func TestLooseningCutsNothing(t *testing.T) {
	w := newWorld(t, `delay = "1h"`, `delay = "0s"`)
	a := w.open()
	before := testworld.Must(w.scoring().enrol(direct{a}))
	w.change(a, `"scoring.clinic.example"`, `"scoring.clinic.example", "more.clinic.example"`)
	after := testworld.Must(w.scoring().enrol(direct{a}))
	wantKey(t, "current", after.Rings.Strict.Current, before.Rings.Strict.Current)
	wantKey(t, "next", after.Rings.Strict.Next, before.Rings.Strict.Next)
}

// TestRestartedAfterCut: an authority that reads the cut from the store at its start enforces it
// too.
func TestRestartedAfterCut(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	bad := w.scoring()
	id := wire.UnitIDOf(testworld.Must(x509.MarshalPKIXPublicKey(&bad.signing.PublicKey)))
	testworld.Must(bad.enrol(direct{a}))
	w.change(a, "calls = [\"keys\"]\n", fmt.Sprintf("calls = [\"keys\"]\ncut_units = [%q]\n", id))
	_, err := bad.enrol(direct{w.open()})
	testworld.Refused(t, err, wire.CutOff)
}
