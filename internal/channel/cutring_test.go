package channel

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// cutRings replaces all ring keys of the world, as a cut-off does, and gives the
// unit of a key its new standing.
func (w *world) cutRings(h *Host) {
	w.T.Helper()
	w.mu.Lock()
	w.ring = identity.Ring{Strict: identity.NewRingKeys(noon, time.Hour), Follow: identity.NewRingKeys(noon, time.Hour)}
	w.mu.Unlock()
	if err := h.Update(w.standing(w.keyOf(h), "1")); err != nil {
		w.T.Fatal(err)
	}
}

// TestCutBesideJoin replaces the rings between the two halves of a join, when the
// session is opened and not yet in the table: a known session, and a new one.
func TestCutBesideJoin(t *testing.T) {
	for _, known := range []bool{false, true} {
		w := newWorld(t)
		h := w.host(Limits{})
		_, sealed := w.opened(w.host(Limits{}), w.byTask())
		if known {
			if _, err := h.Join(sealed, w.clock.Now()); err != nil {
				t.Fatal(err)
			}
		}
		u, r, err := h.unverified(envelope.Session, sealed, w.clock.Now())
		if err != nil {
			t.Fatal(err)
		}
		s := &session{id: u.Session, expiry: u.Expiry, ring: u.Ring}
		if err := openBody(s, testworld.Must(r.open(u, nil)), r.pin); err != nil {
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

// TestResealUnknownRing: a session under a ring key that is not held is not sealed
// anew, of whichever kind it may be, and holds up no other.
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

// TestCutBesideOpen replaces the rings while an open request is worked on: the
// server begins it again under the new ones, and the client notices nothing.
func TestCutBesideOpen(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	o := testworld.Must(NewOpening(w.byTask(), 0))
	a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, w.clock.Now()))
	w.cutRings(h)
	_, _, err := a.Finish(attest.Evidence{}, w.clock.Now())
	testworld.Refused(t, err, wire.UnknownRing)
	if err := a.Again(w.clock.Now()); err != nil {
		t.Fatal(err)
	}
	answer, sealed, err := a.Finish(attest.Evidence{}, w.clock.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := testworld.Must(o.Finish(answer, w.trust(), w.clock.Now()))
	if other := w.host(Limits{}); s.ID() != testworld.Must(other.Join(sealed, w.clock.Now())) {
		t.Error("another unit holds another session")
	}
}

// cutting is an attester under which the rings are cut, as often as it is told.
type cutting struct {
	attest.Attester
	left *int
	cut  func()
}

func (c cutting) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if *c.left > 0 {
		*c.left--
		c.cut()
	}
	return c.Attester.Attest(ctx, data)
}

// TestCutBesideEvidence cuts the rings while a unit makes fresh evidence for a
// client, which gets its session all the same, with evidence of it.
func TestCutBesideEvidence(t *testing.T) {
	c := newCluster(t, 1, http.NotFoundHandler())
	left := openAgain
	c.units[0].server.config.Attester = cutting{c.Device("scoring 1"), &left, func() { c.cutRings(c.units[0].Host) }}
	o := testworld.Must(NewOpening(c.byTask(), WantEvidence))
	send := func(cookie string) *http.Response {
		r := testworld.Must(http.NewRequest(http.MethodPost, "http://unit"+wire.PathSession, bytes.NewReader(o.Request())))
		r.Header.Set("Content-Type", wire.TypeSession)
		r.Header.Set(wire.FieldCookie, cookie)
		return serve(c.units[0].server, r)
	}
	answer := send(send("").Header.Get(wire.FieldCookie))
	body := testworld.Must(io.ReadAll(answer.Body))
	if answer.StatusCode != http.StatusOK {
		t.Fatalf("got status %d, %s, want 200", answer.StatusCode, body)
	}
	s := testworld.Must(o.Finish(body, c.world.Trust(), c.clock.Now()))
	if left > 0 || !s.Evidence().OK() {
		t.Errorf("got %d cuts left to do and evidence %v, want none and good evidence", left, s.Evidence().OK())
	}
}

// TestErasedRingKeepsNothing erases a ring key while something is sealed under it: what
// was derived for that is not kept.
func TestErasedRingKeepsNothing(t *testing.T) {
	w := newWorld(t)
	r := w.host(Limits{}).standing.follow
	var derived *sealKey
	err := r.use(wire.UnitID{1}, func(k *sealKey) error {
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

// TestRingHasEnded: under a ring key that has ended a unit opens no session, gives
// no cookie, and signs no keys for one-off requests.
func TestRingHasEnded(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	h.standing.NotAfter = noon.Add(10 * time.Hour)
	request := testworld.Must(NewOpening(w.byTask(), 0)).Request()
	end := h.standing.follow.key.End()
	if _, err := h.Accept(OpenRequest{Body: request, Number: 7}, end.Add(-time.Second)); err != nil {
		t.Errorf("a second before the end: %v", err)
	}
	_, err := h.Accept(OpenRequest{Body: request, Number: 7}, end)
	testworld.Refused(t, err, wire.Unavailable)
	_, err = h.Cookie(request, end)
	testworld.Refused(t, err, wire.Unavailable)
	_, _, err = h.OneOffKeys(Pin{Task: "scoring"}, end)
	testworld.Refused(t, err, wire.Unavailable)
}

// TestCutsBesideEverything opens, joins, seals anew and closes sessions while the
// rings are cut again and again: what is under way is refused or finished, and
// nothing panics. The race detector watches it.
func TestCutsBesideEverything(t *testing.T) {
	c := newCluster(t, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	h, other := c.units[0].Host, c.units[1].Host
	var all sync.WaitGroup
	var stop atomic.Bool
	var opened, joined atomic.Int64
	var failure atomic.Pointer[string]
	again := func(f func()) {
		all.Go(func() {
			for !stop.Load() {
				f()
			}
		})
	}
	type opening struct {
		session *Session
		sealed  []byte
	}
	copies := make(chan opening, 64)
	for range 2 {
		again(func() {
			o := testworld.Must(NewOpening(c.byTask(), 0))
			r := testworld.Must(http.NewRequest(http.MethodPost, "http://unit"+wire.PathSession, bytes.NewReader(o.Request())))
			r.Header.Set("Content-Type", wire.TypeSession)
			answer := serve(c.units[0].server, r)
			body := testworld.Must(io.ReadAll(answer.Body)) // to the end of the request's work
			switch {
			case answer.StatusCode == http.StatusOK:
				opened.Add(1)
			case !bytes.Contains(body, []byte(`"reason":"ring"`)): // cut three times on its way
				failure.Store(new(string(body)))
			}
		})
	}
	again(func() {
		o := testworld.Must(NewOpening(c.byTask(), 0))
		a, err := other.Accept(OpenRequest{Body: o.Request(), Number: 7}, c.clock.Now())
		if err != nil {
			return
		}
		answer, sealed, err := a.Finish(attest.Evidence{}, c.clock.Now())
		if err != nil {
			return
		}
		select {
		case copies <- opening{testworld.Must(o.Finish(answer, c.trust(), c.clock.Now())), sealed}:
		default:
		}
	})
	again(func() {
		select {
		case o := <-copies:
			for range 8 {
				_, err := h.Join(o.sealed, c.clock.Now())
				if err != nil {
					continue
				}
				joined.Add(1)
				// What a unit does to close it; refused where the ring is gone.
				x := testworld.Must(o.session.NewRequest(RequestConfig{Target: h.ID(), NotAfter: c.clock.Now().Add(time.Second), Flags: wire.FlagClose}))
				raw := testworld.Must(x.Whole(bhttp.Head{}, nil))
				in, err := h.Open([wire.HeaderSize]byte(raw), bytes.NewReader(raw[wire.HeaderSize:]), c.clock.Now())
				if err == nil && in.Authenticate(nil, c.unitClock) == nil {
					_, _ = in.Close()
				}
			}
		default:
		}
	})
	again(func() { _, _, _ = h.Reseal(64, c.clock.Now()) })
	for range 60 {
		time.Sleep(5 * time.Millisecond)
		c.cutRings(h)
		if err := other.Update(c.standing(c.keyOf(other), "1")); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	all.Wait()
	if opened.Load() == 0 || joined.Load() == 0 {
		t.Errorf("got %d opened and %d joined, want some: the test shows nothing", opened.Load(), joined.Load())
	}
	if said := failure.Load(); said != nil {
		t.Errorf("got an open request that failed, %s, want none", *said)
	}
}
