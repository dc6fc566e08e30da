package channel

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// adopt puts the next policy, with edits, in force for clients and for the credentials of units,
// and returns it. Units learn it by [Host.Follow].
func (w *world) adopt(edits ...string) policy.Approved {
	w.T.Helper()
	const created = "created      = "
	next := testworld.Must(w.policy.Next(w.SignPolicy(w.NextText(w.policy, append(edits, created+w.policy.Document().Created.Format(time.RFC3339),
		created+w.clock.Now().UTC().Truncate(time.Second).Format(time.RFC3339))...))))
	w.mu.Lock()
	defer w.mu.Unlock()
	w.policy, w.issuer = next, testworld.Must(w.keys.Issuer(next))
	return next
}

// cutOff adopts a policy that cuts off one more unit.
func (w *world) cutOff(id wire.UnitID) policy.Approved {
	w.T.Helper()
	const table, key = "[task.scoring]\n", "cut_units = ["
	if strings.Contains(string(w.policy.Document().Source()), key) {
		return w.adopt(key, fmt.Sprintf("%s%q, ", key, id))
	}
	return w.adopt(table, fmt.Sprintf("%s%s%q]\n", table, key, id))
}

// renewed updates a host to the world's policy and gives it new credentials with the world's
// rings, as a certificate report does.
func (w *world) renewed(h *Host, release string) {
	w.T.Helper()
	h.Follow(w.policy)
	testworld.Must(0, h.Update(w.standing(w.keyOf(h), release)))
}

// drawn returns new ring keys, as of a restarted authority, with the old current key as the
// previous one.
func drawn(before identity.RingKeys, life time.Duration) identity.RingKeys {
	fresh := identity.NewRingKeys(noon, life)
	fresh.Previous = before.Current.Until(noon.Add(life))
	return fresh
}

func (w *world) drawRings() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ring = identity.Ring{Strict: identity.NewRingKeys(w.clock.Now(), time.Hour), Follow: identity.NewRingKeys(w.clock.Now(), time.Hour)}
}

// openedBy returns a unit's response to an open request, and the sealed session.
func (w *world) openedBy(h *Host, o *ClientHandshake) (response, sealed []byte) {
	w.T.Helper()
	a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, w.clock.Now()))
	response, sealed, err := a.Finish(attest.Evidence{}, w.clock.Now())
	if err != nil {
		w.T.Fatal(err)
	}
	return response, sealed
}

// TestCutUnitOpensNothing: a unit that is cut off has not received the cut, and continues with
// its keys and certificate. A client that has the newer policy accepts no session, no keys for
// one-off requests and no receipt from it.
func TestCutUnitOpensNothing(t *testing.T) {
	w := newWorld(t)
	twin := w.host(Limits{})
	before := w.trust()
	for _, cut := range []func(){
		func() { w.cutOff(twin.ID()) },
		func() {
			w.adopt("[task.scoring.release.\"1\"]\nreference = [ { platform = \"soft\", program = \""+wire.Sum([]byte("scoring 1")).String()+"\" } ]\n", "", "continues = \"1\"\n", "")
		},
	} {
		cut()
		for _, pin := range []unitauth.Pin{w.byTask(), {Genesis: w.policy.Genesis(), ID: twin.credentials.Identity}} {
			o := testworld.Must(NewClientHandshake(pin, 0))
			response, _ := w.openedBy(twin, o)
			if _, err := o.Finish(response, before, noon); err != nil {
				t.Errorf("by policy before the cut: %v", err)
			}
			_, err := o.Finish(response, w.trust(), noon)
			if reason := wire.ReasonOf(err); reason != wire.CutOff && reason != wire.WrongIdentity {
				t.Errorf("session: got %v, want %q or, where the release is gone, %q", err, wire.CutOff, wire.WrongIdentity)
			}
		}
		signed, _, err := twin.OHTTPKeys(unitauth.Pin{Task: "scoring"}, noon)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = unitauth.VerifyOHTTPKeys(signed, w.byTask(), w.trust(), noon); wire.ReasonOf(err) != wire.CutOff {
			t.Errorf("one-off keys: got %v, want %q", err, wire.CutOff)
		}
		w.policy, w.issuer = before.Policy, testworld.Must(w.keys.Issuer(before.Policy))
	}
}

// TestCutWhileRead: a unit learns of its own cut while it reads a request. The program does not
// receive that request.
func TestCutWhileRead(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	raw := asked(s, http.MethodGet, h.ID(), noon.Add(time.Minute))
	x := testworld.Must(h.findSession([wire.HeaderSize]byte(raw), noon))
	h.Follow(w.cutOff(h.ID()))
	testworld.Refused(t, x.openFirst(bytes.NewReader(raw[wire.HeaderSize:]), atNoon), wire.CutOff)
}

// TestBetweenCutAndRenewal: another unit is cut off. Until its next certificate report, the unit
// seals no session and imports none, but its sessions in memory continue. After the report,
// sessions that the cut unit may know are dropped.
func TestBetweenCutAndRenewal(t *testing.T) {
	w := newWorld(t)
	h, other := w.host(Limits{}), w.host(Limits{})
	kept, sealed := w.opened(h, w.byTask())
	_, pushed := w.opened(other, w.byTask())
	_, strict := w.opened(other, w.byID())
	testworld.Must(h.ImportSession(strict, noon))
	from := w.policy.PolicyHead()
	h.Follow(w.cutOff(other.ID()))

	for name, copied := range map[string][]byte{"a pushed session": pushed, "its own sealed copy": sealed} {
		_, err := h.ImportSession(copied, noon)
		if wire.ReasonOf(err) != wire.UnknownRing {
			t.Errorf("%s: got %v, want %q", name, err, wire.UnknownRing)
		}
	}
	if err := brought(h, asked(kept, http.MethodPost, h.ID(), noon.Add(time.Minute)), noon); err != nil {
		t.Errorf("a request in a session in memory: %v", err)
	}
	_, _, err := h.OHTTPKeys(unitauth.Pin{Task: "scoring"}, noon)
	testworld.Refused(t, err, wire.Behind)
	h.mu.Lock()
	h.stale = true
	h.mu.Unlock()
	if again, left, err := h.Reseal(10, noon); err != nil || len(again)+left > 0 {
		t.Errorf("got %d sealed anew, %d left, %v, want nothing", len(again), left, err)
	}
	o := testworld.Must(NewClientHandshake(w.byTask(), 0))
	response, sealed := w.openedBy(h, o)
	alone := testworld.Must(o.Finish(response, w.trust(), noon))
	if sealed != nil || !alone.Alone() || len(alone.Ticket()) > 0 || alone.PolicyHead() != from {
		t.Errorf("got a session with %d sealed bytes, alone %v, a ticket of %d bytes, under head %v; want one that is alone, under %v", len(sealed), alone.Alone(), len(alone.Ticket()), alone.PolicyHead(), from)
	}

	w.drawRings()
	w.renewed(h, "1")
	if s := h.table.byID[kept.ID()]; s.state != dropped {
		t.Error("a session that the cut unit may read is open after the renewal")
	}
	if err := brought(h, asked(alone, http.MethodPost, h.ID(), noon.Add(time.Minute)), noon); err != nil {
		t.Errorf("a request in a session that the unit holds alone: %v", err)
	}
	if again, left, err := h.Reseal(10, noon); err != nil || len(again)+left > 0 {
		t.Errorf("got %d sealed anew, %d left, %v, want nothing: what is alone stays alone", len(again), left, err)
	}
	s, sealed := w.opened(h, w.byTask())
	if sealed == nil || s.Alone() || s.PolicyHead() != w.policy.PolicyHead() {
		t.Errorf("got a session with %d sealed bytes, alone %v, under head %v, want one for all units under %v", len(sealed), s.Alone(), s.PolicyHead(), w.policy.PolicyHead())
	}
}

// TestUnheardUnit: a unit that is not cut off, and has not received the cut of another unit,
// seals a session under keys that the cut unit has. A client with the newer policy refuses that
// session, and its keys for one-off requests.
func TestUnheardUnit(t *testing.T) {
	w := newWorld(t)
	h, other := w.host(Limits{}), w.host(Limits{})
	w.cutOff(other.ID())
	for name, pin := range map[string]unitauth.Pin{"by task": w.byTask(), "by id": w.byID()} {
		o := testworld.Must(NewClientHandshake(pin, 0))
		response, _ := w.openedBy(h, o)
		if _, err := o.Finish(response, w.trust(), noon); wire.ReasonOf(err) != wire.Behind {
			t.Errorf("%s: got %v, want %q", name, err, wire.Behind)
		}
	}
	signed, _, err := h.OHTTPKeys(unitauth.Pin{Task: "scoring"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	_, err = unitauth.VerifyOHTTPKeys(signed, w.byTask(), w.trust(), noon)
	testworld.Refused(t, err, wire.Behind)
}

// TestLeastHead: a client requests a session with a least policy head. A unit that has not
// reached that head refuses with "behind".
func TestLeastHead(t *testing.T) {
	w := newWorld(t)
	h, other := w.host(Limits{}), w.host(Limits{})
	first := w.policy.PolicyHead()
	w.cutOff(other.ID())
	open := func(least attest.Digest) error {
		o := testworld.Must(NewClientHandshakeSince(w.byTask(), 0, least))
		_, err := h.Accept(OpenRequest{Body: o.Request()}, noon)
		return err
	}
	for _, row := range []struct {
		name   string
		before func()
		least  func() attest.Digest
		want   wire.Reason // empty: accepted
	}{
		{"its own head", func() {}, func() attest.Digest { return first }, ""},
		{"one it has not heard of", func() {}, w.policyHead, wire.Behind},
		{"one it has heard of", func() { h.Follow(w.policy) }, w.policyHead, wire.Behind},
		{"one before", func() {}, func() attest.Digest { return first }, ""},
		{"one that it renewed for", func() { w.drawRings(); w.renewed(h, "1") }, w.policyHead, ""},
		{"one before that", func() {}, func() attest.Digest { return first }, ""},
		{"one of another history", func() {}, func() attest.Digest { return wire.Sum([]byte("another")) }, wire.Behind},
		{"one that does not concern it", func() { h.Follow(w.adopt("other.clinic.example", "more.clinic.example")) }, w.policyHead, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			row.before()
			err := open(row.least())
			if row.want == "" && err == nil {
				return
			}
			testworld.Refused(t, err, row.want)
		})
	}
}

func (w *world) policyHead() attest.Digest { return w.policy.PolicyHead() }

// TestLeastHeadIsSaid: a unit opens a session though it has not reached the requested head. The
// client refuses it.
func TestLeastHeadIsSaid(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	w.adopt("other.clinic.example", "more.clinic.example")
	o := testworld.Must(NewClientHandshakeSince(w.byTask(), 0, w.policy.PolicyHead()))
	h.known.head = w.policy.PolicyHead() // so that it accepts the request
	a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, noon))
	a.head = h.credentials.Head
	testworld.Must(0, a.begin(noon))
	response, _, err := a.Finish(attest.Evidence{}, w.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	_, err = o.Finish(response, w.trust(), noon)
	testworld.Refused(t, err, wire.Behind)
	if _, err := NewClientHandshake(w.byTask(), wantHead); wire.ReasonOf(err) != wire.BadRequest {
		t.Errorf("wanting a head without one: got %v, want %q", err, wire.BadRequest)
	}
}

// TestKnownBesideOpen: a unit learns of a cut while it handles an open request. It starts the
// request again, and does not share the session with other units.
func TestKnownBesideOpen(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	o := testworld.Must(NewClientHandshake(w.byTask(), 0))
	a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, noon))
	h.Follow(w.cutOff(w.host(Limits{}).ID()))
	_, _, err := a.Finish(attest.Evidence{}, w.clock.Now())
	testworld.Refused(t, err, wire.UnknownRing)
	testworld.Must(0, a.Again(noon))
	response, sealed, err := a.Finish(attest.Evidence{}, w.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	if s := testworld.Must(o.Finish(response, w.trust(), noon)); sealed != nil || !s.Alone() {
		t.Errorf("got %d sealed bytes, alone %v, want a session that is alone", len(sealed), s.Alone())
	}
}

// TestOldRingIsDropped: after a cut, a report still contains keys from before it. The unit drops
// them when they are previous keys, and refuses the report when they are current keys.
func TestOldRingIsDropped(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	old := copyRing(w.ring)
	h.Follow(w.cutOff(w.host(Limits{}).ID()))
	testworld.Refused(t, h.Update(w.standing(h.key, "1")), wire.UnknownRing)
	w.drawRings()
	w.ring.Follow.Previous, w.ring.Strict.Previous = old.Follow.Current, old.Strict.Current
	testworld.Must(0, h.Update(w.standing(h.key, "1")))
	if got := h.Stats(noon).Rings; got != 4 {
		t.Errorf("got %d ring keys, want current and next of two kinds", got)
	}
	if known := h.table.byID[s.ID()]; known.state != dropped {
		t.Error("a session under a key from before the cut is open")
	}
}

// TestHeirs: the policy removes a release that continues another. Its units had the keys of
// sessions by task name at the other release, so those sessions are cut; sessions pinned to code
// are not.
func TestHeirs(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	follow, _ := w.opened(h, w.byTask())
	strict, _ := w.opened(h, w.byID())
	// Removing a release cuts only its own identity.
	w.adopt("[task.scoring.release.\"2\"]\nreference = [ { platform = \"soft\", program = \""+wire.Sum([]byte("scoring 2")).String()+"\" } ]\ncontinues = \"1\"\n", "")
	testworld.Refused(t, follow.CutOff(w.policy, noon), wire.CutOff)
	if err := strict.CutOff(w.policy, noon); err != nil {
		t.Errorf("a session that the cut units cannot read: %v", err)
	}
	h.Follow(w.policy)
	if len(h.known.old) != 2 || !h.known.old[h.credentials.follow.key.ID()] {
		t.Errorf("got %d keys that are older than the cut, want the follow keys", len(h.known.old))
	}
	sealed, _ := w.opened(h, w.byID())
	if sealed.Alone() {
		t.Error("a session pinned to code is alone, though no cut unit holds its keys")
	}
}

// TestRetiredIsNotCut: a retired release ends no session.
func TestRetiredIsNotCut(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, sealed := w.opened(h, w.byTask())
	other := w.host(Limits{})
	from := w.policy.PolicyHead()
	w.adopt("[task.scoring.release.\"1\"]\n", "[task.scoring.release.\"1\"]\nretired = true\n")
	for _, u := range []*Host{h, other} {
		u.Follow(w.policy)
	}
	if err := s.CutOff(w.policy, noon); err != nil {
		t.Errorf("the session: %v", err)
	}
	if _, err := other.ImportSession(sealed, noon); err != nil {
		t.Errorf("joining the session: %v", err)
	}
	o := testworld.Must(NewClientHandshakeSince(w.byTask(), 0, w.byTask().LastCut(w.policy)))
	response, sealed := w.openedBy(h, o)
	if again, err := o.Finish(response, w.trust(), noon); err != nil || again.Alone() || sealed == nil {
		t.Errorf("another session: %v, %d sealed bytes, want one for all units", err, len(sealed))
	}
	if cut := w.byTask().LastCut(w.policy); !cut.IsZero() {
		t.Errorf("got a cut at %v, want none; the policy before is %v", cut, from)
	}
}

// TestAloneOpenerIsCut: a session that only one unit has ends only when that unit is cut off.
func TestAloneOpenerIsCut(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	h.Follow(w.cutOff(w.host(Limits{}).ID()))
	o := testworld.Must(NewClientHandshake(w.byTask(), 0))
	response, _ := w.openedBy(h, o)
	s := testworld.Must(o.Finish(response, w.trust(), noon))
	if err := s.CutOff(w.cutOff(w.host(Limits{}).ID()), noon); err != nil || !s.Alone() {
		t.Errorf("another unit is cut off: %v, alone %v", err, s.Alone())
	}
	testworld.Refused(t, s.CutOff(w.cutOff(h.ID()), noon), wire.CutOff)
}

// TestInheritedCut: the policy removes the release that another continues. The successor takes
// over no more sessions from it, and its own sessions continue.
func TestInheritedCut(t *testing.T) {
	w := newWorld(t)
	old := w.host(Limits{})
	h, _ := w.successor(w.ring)
	_, sealed := w.opened(old, w.byTask())
	_, later := w.opened(old, w.byTask())
	id := testworld.Must(h.ImportSession(sealed, noon))
	// Remove the earlier release: that cuts off its units only.
	h.Follow(w.adopt("[task.scoring.release.\"1\"]\nreference = [ { platform = \"soft\", program = \""+wire.Sum([]byte("scoring 1")).String()+"\" } ]\n", "", "continues = \"1\"\n", ""))
	if again, left, err := h.Reseal(10, noon); err != nil || len(again)+left > 0 {
		t.Errorf("got %d sealed anew, %d left, %v, want nothing carried over", len(again), left, err)
	}
	if s := h.table.byID[id]; s.state != open {
		t.Error("a session in memory ended before the renewal")
	}
	_, err := h.ImportSession(later, noon)
	testworld.Refused(t, err, wire.UnknownRing)
	s, sealed := w.opened(h, w.byTask())
	if s.Alone() || sealed == nil {
		t.Error("a session under keys that no cut unit held is alone")
	}
}
