package channel

import (
	"bytes"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// cutRings replaces all ring keys of the world, as a cut-off does, and updates a host to them.
func (w *world) cutRings(h *Host) {
	w.T.Helper()
	w.mu.Lock()
	w.ring = identity.Ring{Strict: identity.NewRingKeys(noon, time.Hour), Follow: identity.NewRingKeys(noon, time.Hour)}
	w.mu.Unlock()
	if err := h.Update(w.standing(w.keyOf(h), "1")); err != nil {
		w.T.Fatal(err)
	}
}

// TestCutBesideJoin replaces the rings between the two steps of an import, when the session is
// opened but not yet in the table. The import is refused, for a known session and a new one.
func TestCutBesideJoin(t *testing.T) {
	for _, known := range []bool{false, true} {
		w := newWorld(t)
		h := w.host(Limits{})
		_, sealed := w.opened(w.host(Limits{}), w.byTask())
		if known {
			if _, err := h.ImportSession(sealed, w.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		u, r, err := h.unverified(envelope.Session, sealed, w.clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		s := &session{id: u.Session, expiry: u.Expiry, ring: u.Ring}
		if err := openBody(s, testworld.Must(r.openSealed(u, nil)), r.pin); err != nil {
			t.Fatal(err)
		}
		w.cutRings(h)
		testworld.Refused(t, h.install(s, w.clock.Now()), wire.UnknownRing)
		if held := h.table.byID[u.Session]; held != nil && held.state == open {
			t.Errorf("known %v: the session is open under an erased ring key", known)
		}
		if sealed, left, err := h.Reseal(10, w.clock.Now()); err != nil || len(sealed)+left > 0 {
			t.Errorf("known %v: sealed anew %d, left %d, %v, want nothing", known, len(sealed), left, err)
		}
	}
}

// TestResealUnknownRing: a session under an unknown ring key is not resealed.
func TestResealUnknownRing(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	w.opened(h, w.byTask())
	h.mu.Lock()
	for _, s := range h.table.byID {
		s.ring = identity.RingID{1}
	}
	h.stale = true
	h.mu.Unlock()
	sealed, left, err := h.Reseal(10, w.clock.Now())
	if len(sealed)+left > 0 {
		t.Errorf("got %d sealed anew, %d left, want none", len(sealed), left)
	}
	testworld.Refused(t, err, wire.UnknownRing)
}

// TestCutBesideOpen replaces the rings while a unit handles an open request. The unit starts it
// again under the new rings, and the client does not notice.
func TestCutBesideOpen(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	o := testworld.Must(NewClientHandshake(w.byTask(), 0))
	a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, w.clock.Now()))
	w.cutRings(h)
	_, _, err := a.Finish(attest.Evidence{}, w.clock.Now())
	testworld.Refused(t, err, wire.UnknownRing)
	if err := a.Again(w.clock.Now()); err != nil {
		t.Fatal(err)
	}
	response, sealed, err := a.Finish(attest.Evidence{}, w.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := testworld.Must(o.Finish(response, w.trust(), w.clock.Now()))
	if other := w.host(Limits{}); s.ID() != testworld.Must(other.ImportSession(sealed, w.clock.Now())) {
		t.Error("another unit holds another session")
	}
}

// TestErasedRingKeepsNothing erases a ring key while a key derived from it is in use. The derived
// key is erased too.
func TestErasedRingKeepsNothing(t *testing.T) {
	w := newWorld(t)
	r := w.host(Limits{}).credentials.follow
	var derived *sealKey
	err := r.withSealKey(wire.UnitID{1}, func(k *sealKey) error {
		derived = k
		r.erase()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.seals) > 0 || !bytes.Equal(derived.nonce, make([]byte, len(derived.nonce))) {
		t.Errorf("got %d keys kept, and the one used is %x, want none and zeros", len(r.seals), derived.nonce)
	}
}

// TestRingHasEnded: under an expired ring key, a unit opens no session, issues no cookie, and
// signs no keys for one-off requests.
func TestRingHasEnded(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	h.credentials.NotAfter = noon.Add(10 * time.Hour)
	request := testworld.Must(NewClientHandshake(w.byTask(), 0)).Request()
	end := h.credentials.follow.key.Expires()
	if _, err := h.Accept(OpenRequest{Body: request, Number: 7}, end.Add(-time.Second)); err != nil {
		t.Errorf("a second before the end: %v", err)
	}
	_, err := h.Accept(OpenRequest{Body: request, Number: 7}, end)
	testworld.Refused(t, err, wire.Unavailable)
	_, err = h.Cookie(request, end)
	testworld.Refused(t, err, wire.Unavailable)
	_, _, err = h.OHTTPKeys(unitauth.Pin{Task: "scoring"}, end)
	testworld.Refused(t, err, wire.Unavailable)
}
