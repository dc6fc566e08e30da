package channel

import (
	"bytes"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestTable fills a session table. Sessions without requests are evicted first, in order of
// arrival, then sessions whose requests have all expired. If none may be evicted, a new session
// is refused.
func TestTable(t *testing.T) {
	w := newWorld(t)
	a, b := w.host(Limits{}), w.host(Limits{Sessions: 3, Opened: 3})
	type both struct {
		*Session
		sealed []byte
	}
	var all []both
	for range 8 {
		s, sealed := w.opened(a, w.byTask())
		all = append(all, both{s, sealed})
	}
	join := func(i int, at time.Time) error { _, err := b.ImportSession(all[i].sealed, at); return err }
	valid := func(step string, want ...int) {
		t.Helper()
		for i := range all {
			known := b.table.byID[all[i].id] != nil
			wanted := false
			for _, n := range want {
				wanted = wanted || n == i
			}
			if known != wanted {
				t.Errorf("%s: session %d: held %v, want %v", step, i, known, wanted)
			}
		}
	}
	use := func(i int, until time.Duration, at time.Time) {
		t.Helper()
		if err := brought(b, asked(all[i].Session, "GET", b.ID(), noon.Add(until)), at); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		testworld.Must(0, join(i, noon))
	}
	use(0, time.Minute, noon)
	testworld.Must(0, join(3, noon))
	valid("the first untouched one yields", 0, 2, 3)
	testworld.Must(0, join(4, noon))
	valid("then the next", 0, 3, 4)
	use(3, 90*time.Second, noon)
	use(4, 30*time.Second, noon)
	testworld.Refused(t, join(5, noon.Add(30*time.Second)), wire.Overload)
	valid("none may yield", 0, 3, 4)
	testworld.Must(0, join(0, noon))
	testworld.Must(0, join(5, noon.Add(30*time.Second+time.Millisecond)))
	valid("the one whose numbers are over yields, not the one that came first", 0, 3, 5)
	use(5, 2*time.Minute, noon.Add(31*time.Second))
	testworld.Must(0, join(6, noon.Add(61*time.Second)))
	valid("then the next that is over", 3, 5, 6)
	testworld.Refused(t, brought(b, asked(all[0].Session, "GET", b.ID(), noon.Add(2*time.Minute)), noon.Add(62*time.Second)), wire.TicketWanted)
	testworld.Must(0, join(0, noon.Add(62*time.Second)))
	testworld.Must(0, brought(b, asked(all[0].Session, "GET", b.ID(), noon.Add(2*time.Minute)), noon.Add(62*time.Second)))
	if got := b.Stats(noon.Add(time.Hour)); got.Sessions != 0 {
		t.Errorf("after their expiry: got %d sessions, want 0", got.Sessions)
	}
}

// TestYieldedOnce: a session is evicted and imported again. A request that ran before does not
// run again, neither in the last millisecond of its time nor after.
func TestYieldedOnce(t *testing.T) {
	w := newWorld(t)
	a, h := w.host(Limits{}), w.host(Limits{Sessions: 1, Opened: 1})
	s, sealed := w.opened(a, w.byTask())
	_, other := w.opened(a, w.byTask())
	testworld.Must(h.ImportSession(sealed, noon))
	end := noon.Add(20 * time.Second)
	raw := asked(s, "POST", h.ID(), end)
	testworld.Must(0, brought(h, raw, noon))
	for _, at := range []time.Time{noon, end, end.Add(time.Millisecond), end.Add(time.Minute)} {
		if _, err := h.ImportSession(other, at); err != nil { // needs the only entry of the table
			testworld.Refused(t, err, wire.Overload)
		}
		if _, err := h.ImportSession(sealed, at); err != nil {
			testworld.Refused(t, err, wire.Overload)
		}
		if err := brought(h, raw, at); err == nil {
			t.Errorf("%v after its first delivery the request was taken again", at.Sub(noon))
		}
	}
}

// TestOwnQuarter: sessions that the unit opens evict each other, but not imported sessions.
func TestOwnQuarter(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{Sessions: 8, Opened: 2})
	for range 4 {
		_, sealed := w.opened(w.host(Limits{}), w.byTask())
		testworld.Must(h.ImportSession(sealed, noon))
	}
	for range 5 {
		w.opened(h, w.byTask())
	}
	if got := h.Stats(noon); got.Opened != 2 || got.Sessions != 6 {
		t.Errorf("got %+v, want 2 opened here of 6", got)
	}
}

// TestCookieOnce: a cookie and a KEM key get evidence once, even if the first client never
// finishes.
func TestCookieOnce(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	o := testworld.Must(NewClientHandshake(w.byTask(), WantEvidence))
	cookie := testworld.Must(h.Cookie(o.Request(), noon))
	accept := func(at time.Time, cookie []byte) error {
		_, err := h.Accept(OpenRequest{Body: o.Request(), Cookie: cookie, Number: 7}, at)
		return err
	}
	testworld.Must(0, accept(noon, cookie)) // never finishes
	for _, at := range []time.Duration{0, time.Second, 119 * time.Second} {
		testworld.Refused(t, accept(noon.Add(at), testworld.Must(h.Cookie(o.Request(), noon.Add(at)))), wire.Replayed)
	}
	testworld.Refused(t, accept(noon.Add(2*time.Minute), cookie), wire.CookieWanted)
	testworld.Must(0, accept(noon.Add(2*time.Minute), testworld.Must(h.Cookie(o.Request(), noon.Add(2*time.Minute)))))
}

// TestSpentKeys: the set of used KEM keys remembers keys for two minutes, and at most 65,536.
func TestSpentKeys(t *testing.T) {
	var s usedKEMKeys
	key := func(n int) []byte { return wire.Uint64(uint64(n)) }
	for n := range maxSpent {
		testworld.Must(0, s.takeKey(key(n), noon.Add(time.Duration(n)*time.Millisecond)))
	}
	testworld.Refused(t, s.takeKey(key(maxSpent), noon.Add(spentFor-1)), wire.Overload)
	testworld.Refused(t, s.takeKey(key(0), noon.Add(spentFor-1)), wire.Replayed)
	testworld.Must(0, s.takeKey(key(0), noon.Add(spentFor)))
	testworld.Refused(t, s.takeKey(key(1), noon.Add(spentFor)), wire.Replayed)
	testworld.Must(0, s.takeKey(key(maxSpent), noon.Add(spentFor+100*time.Millisecond)))
	testworld.Must(0, s.takeKey(key(1), noon.Add(time.Hour)))
	if len(s.keys) != 1 || len(s.queue)-s.next != 1 {
		t.Errorf("got %d keys and %d in the queue after an hour, want 1", len(s.keys), len(s.queue)-s.next)
	}
}

// TestClosedRecords: a closed session becomes a record, which stays until no request of it can be
// in time. At the bound the oldest such record is removed; if none may be, the session stays in
// the table without its secret.
func TestClosedRecords(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{Closed: 2})
	type both struct {
		*Session
		sealed []byte
	}
	closes := func(at time.Time) both {
		t.Helper()
		s, sealed := w.opened(h, w.byTask())
		x := testworld.Must(s.newRequest(h.ID(), at.Add(10*time.Second), wire.FlagClose))
		raw := testworld.Must(x.Whole(bhttp.Head{}, nil))
		in := testworld.Must(h.findSession([wire.HeaderSize]byte(raw), at))
		testworld.Must(0, in.openFirst(bytes.NewReader(raw[wire.HeaderSize:]), func() (time.Time, error) { return at, nil }))
		testworld.Must(in.Close())
		return both{s, sealed}
	}
	stands := func(step string, sessions, records int) {
		t.Helper()
		if got := h.Stats(h.newest); got.Sessions != sessions || got.Closed != records {
			t.Errorf("%s: got %d sessions and %d records, want %d and %d", step, got.Sessions, got.Closed, sessions, records)
		}
	}
	first, second := closes(noon), closes(noon.Add(time.Second))
	stands("two closed", 0, 2)
	third := closes(noon.Add(2 * time.Second))
	stands("three closed, and none may yield", 1, 2)
	closes(noon.Add(time.Minute)) // all requests of the earlier sessions have expired
	stands("four closed, and what was sent before may be in time still", 2, 2)
	for i, s := range []both{first, second, third} {
		_, err := h.ImportSession(s.sealed, noon.Add(2*time.Minute))
		testworld.Refused(t, err, wire.SessionOver)
		if e := h.table.byID[s.id]; e != nil && e.secret == s.secret {
			t.Errorf("session %d has its secret still", i)
		}
	}
	// Requests sent before the close expire within 2 minutes of it.
	last := noon.Add(2 * time.Minute)
	testworld.Refused(t, brought(h, asked(first.Session, "POST", h.ID(), last), last), wire.Rekey)
	closes(last.Add(time.Millisecond))
	stands("the first record is over", 2, 2)
	_, err := h.ImportSession(first.sealed, last.Add(time.Millisecond))
	testworld.Must(0, err)
	testworld.Refused(t, brought(h, asked(first.Session, "POST", h.ID(), last), last.Add(time.Millisecond)), wire.Expired)
	stands("after a record yielded its session may come back", 3, 2)
	h.Stats(noon.Add(time.Hour))
	stands("after their expiry", 0, 0)
}

// TestTombstonesReachAll: the other units accept the tombstone of a session, whatever its pin.
func TestTombstonesReachAll(t *testing.T) {
	for name, pin := range map[string]func(*world) unitauth.Pin{
		"task": (*world).byTask,
		"id":   (*world).byID,
		"role": func(w *world) unitauth.Pin {
			return unitauth.Pin{Genesis: w.policy.Genesis(), Group: "trial", Role: "holder"}
		},
		"group": func(w *world) unitauth.Pin { return unitauth.Pin{Genesis: w.policy.Genesis(), Group: "trial"} },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			start := func() *Host {
				h := w.host(Limits{})
				s := w.standing(h.key, "1")
				if name == "role" || name == "group" {
					s.Group, s.Role = "trial", "holder"
				}
				testworld.Must(0, h.Update(s))
				return h
			}
			a, b := start(), start()
			o := testworld.Must(NewClientHandshake(pin(w), 0))
			acceptance := testworld.Must(a.Accept(OpenRequest{Body: o.Request(), Number: 7}, noon))
			_, sealed, err := acceptance.Finish(attest.Evidence{}, noon)
			testworld.Must(0, err)
			testworld.Must(b.ImportSession(sealed, noon))
			s := &Session{id: acceptance.session.id, secret: acceptance.session.secret}
			x := testworld.Must(s.newRequest(a.ID(), noon.Add(time.Second), wire.FlagClose))
			raw := testworld.Must(x.Whole(bhttp.Head{}, nil))
			in := testworld.Must(a.findSession([wire.HeaderSize]byte(raw), noon))
			testworld.Must(0, in.openFirst(bytes.NewReader(raw[wire.HeaderSize:]), atNoon))
			if _, err := b.Terminate(testworld.Must(in.Close()), noon); err != nil {
				t.Fatalf("the other unit: %v", err)
			}
			_, err = b.ImportSession(sealed, noon)
			testworld.Refused(t, err, wire.SessionOver)
			testworld.Refused(t, brought(b, asked(s, "GET", b.ID(), noon.Add(time.Second)), noon), wire.Rekey)
		})
	}
}

// TestOneKeyAtOnce sends one open request many times at once. Exactly one is accepted.
func TestOneKeyAtOnce(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	o := testworld.Must(NewClientHandshake(w.byTask(), 0))
	var accepted atomic.Int64
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if _, err := h.Accept(OpenRequest{Body: o.Request(), Number: 7}, noon); err == nil {
				accepted.Add(1)
			} else if wire.ReasonOf(err) != wire.Replayed {
				t.Errorf("got %v, want %v", err, wire.Replayed)
			}
		})
	}
	all.Wait()
	if got := accepted.Load(); got != 1 {
		t.Errorf("got %d accepted, want 1", got)
	}
}
