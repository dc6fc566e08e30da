package manager

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/relay"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestRogueTenant: a genuine unit of one task claims another task's address, sessions and
// inheritance. No request and no sealed session of the other task reaches it.
func TestRogueTenant(t *testing.T) {
	w := newWorld(t)
	w.stop()
	w.config.Limits.PerAddress = 10_000 // all requests come from one address
	w.start()
	victim := w.named(bustest.Scoring)
	var stolen atomic.Int64
	rogue := w.replica(bustest.Keys, func(rw http.ResponseWriter, _ *http.Request) { stolen.Add(1); rw.WriteHeader(http.StatusTeapot) })
	atRogue, atVictim := listen(t, rogue.conn), listen(t, victim.conn)
	w.claim(rogue, func(b *bus.Heartbeat) { b.Inherits = victim.Identity })

	stored := item(1, victim.Identity)
	testworld.NoError(t, victim.conn.Publish(stored))
	testworld.Eventually(t, "the session is kept", func() bool { return w.holds(victim.Cluster, stored) })
	following := 100
	for name, forged := range map[string]bus.Item{
		"sealed for the victim":          item(2, victim.Identity),
		"sealed for nobody":              {Kind: bus.Sealed, Session: wire.SessionID{3}, Expiry: stored.Expiry, Bytes: []byte("x")},
		"the victim's session":           sealed(stored, "mine", rogue.Identity),
		"a tombstone of it":              sealed(bus.Item{Kind: bus.Tombstone, Session: stored.Session, Expiry: stored.Expiry}, "", rogue.Identity),
		"another session in it":          {Kind: bus.Sealed, Session: wire.SessionID{4}, Expiry: stored.Expiry, Bytes: item(5, rogue.Identity).Bytes},
		"another expiry than sealed":     {Kind: bus.Sealed, Session: item(6).Session, Expiry: stored.Expiry + 60, Bytes: item(6, rogue.Identity).Bytes},
		"a role of the victim's in none": item(7, wire.RoleID(rogue.Identity, "r")),
	} {
		testworld.NoError(t, rogue.conn.Publish(forged))
		last := item(following, rogue.Identity) // a new item each time
		following++
		testworld.Eventually(t, "what follows is kept", func() bool { _ = rogue.conn.Publish(last); return w.holds(rogue.Cluster, last) })
		if w.holds(rogue.Cluster, forged) || w.holds(victim.Cluster, forged) && forged.Session != stored.Session {
			t.Errorf("%s: is kept", name)
		}
	}
	_, err := rogue.conn.FetchCopy(t.Context(), stored.Session)
	testworld.Refused(t, err, wire.NotFound)

	w.cool()
	c := w.client("gateway.example")
	for range 100 {
		for kind, name := range map[string]string{"id": string(victim.Identity[:]), "task": bustest.Scoring} {
			response, err := c.post(t, wire.PathSession, bytes.NewReader(openBody(kind, name)))
			if err != nil {
				t.Fatal(err)
			}
			if status, body, _ := read(t, response); status != http.StatusOK || body != victim.ID.String() {
				t.Fatalf("open pinned to the victim's %s: got %d by %q", kind, status, body)
			}
		}
		if status, _, p := c.request(t, wire.Header{Session: wire.SessionID{77}}, ""); status != http.StatusPreconditionRequired || p.Reason != wire.TicketWanted {
			t.Fatalf("request of a session that nobody knows: got %d %q, want 428 %q", status, p.Reason, wire.TicketWanted)
		}
		ticketed := c
		ticketed.more = http.Header{wire.FieldTicket: {base64.RawURLEncoding.EncodeToString(item(78, victim.Identity).Bytes)}}
		if status, body, _ := ticketed.request(t, wire.Header{Session: item(78).Session}, ""); status != http.StatusOK || body != victim.ID.String() {
			t.Fatalf("request of a session with its ticket: got %d by %q", status, body)
		}
		for name, h := range map[string]wire.Header{"bound": {Target: victim.ID}, "of its session": {Session: stored.Session}} {
			if status, body, _ := c.request(t, h, "x"); status != http.StatusOK || body != victim.ID.String() {
				t.Fatalf("request %s: got %d by %q", name, status, body)
			}
		}
		if status, body, _ := w.client(bustest.DNSName(bustest.Scoring)).request(t, wire.Header{}, "x"); status != http.StatusOK || body != victim.ID.String() {
			t.Fatalf("request for the victim's name: got %d by %q", status, body)
		}
	}
	if got := stolen.Load(); got > 0 {
		t.Errorf("the rogue unit got %d requests", got)
	}
	atRogue.mu.Lock()
	defer atRogue.mu.Unlock()
	for _, i := range atRogue.items {
		if d := recipient(i); d != rogue.Identity {
			t.Errorf("the rogue unit was pushed a session sealed for %v", d)
		}
	}
	if got := atVictim.count(); got != 1 {
		t.Errorf("the victim heard %d items, want its own", got)
	}
	if heirs := w.manager.registry.successors.SuccessorsOf(victim.Cluster); len(heirs) > 0 {
		t.Errorf("got %d heirs of the victim", len(heirs))
	}
}

// TestFloodOfHeartbeats: a unit sends many heartbeats and reconnects often. No item is pushed to
// another unit again.
func TestFloodOfHeartbeats(t *testing.T) {
	w := newWorld(t)
	before := w.named(bustest.Keys)
	heir := w.connect(w.authority.Successor())
	atHeir := listen(t, heir)
	claims := bus.Heartbeat{Address: "127.0.0.1:1", Inherits: before.Identity}
	testworld.NoError(t, heir.SendHeartbeat(claims))
	testworld.Eventually(t, "the heir is known", func() bool { return len(w.manager.registry.successors.SuccessorsOf(before.Cluster)) == 1 })
	const items = 500
	for n := range items {
		testworld.NoError(t, before.conn.Publish(item(n, before.Identity)))
	}
	testworld.Eventually(t, "all are pushed", func() bool { return atHeir.count() == items })
	rogue := w.authority.Successor()
	for range 3 {
		conn := w.connect(rogue)
		for range 3000 {
			testworld.NoError(t, conn.SendHeartbeat(claims))
		}
		conn.Close()
	}
	time.Sleep(20 * relay.BatchGap)
	if got := atHeir.count(); got != items {
		t.Errorf("got %d items, want %d, each once", got, items)
	}
	if got := w.manager.forwards.Entries(); got != 2 {
		t.Errorf("got %d bequests, want one to each of the two units", got)
	}
}

// TestPerUnit: the limit of concurrent requests at one unit also applies to requests bound to it,
// and running requests continue.
func TestPerUnit(t *testing.T) {
	w := newWorld(t)
	w.stop()
	w.config.Limits.PerUnit = 2
	w.start()
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	r := w.replica(bustest.Scoring, func(rw http.ResponseWriter, _ *http.Request) { <-hold; io.WriteString(rw, "done") })
	c := w.client("")
	type outcome struct {
		status int
		reason wire.Reason
	}
	got := make(chan outcome, 20)
	var asking sync.WaitGroup
	for range 20 {
		asking.Go(func() {
			var o outcome
			defer func() { got <- o }() // also if the request fails the test
			status, _, p := c.request(t, wire.Header{Target: r.ID}, "")
			o = outcome{status, p.Reason}
		})
	}
	testworld.Eventually(t, "those beyond the limit are refused", func() bool { return len(got) >= 18 })
	testworld.Eventually(t, "those within it are at the unit", func() bool { return int(r.calls.Load())+len(got) == 20 })
	within := int(r.calls.Load())
	if within < 1 || within > 2 {
		t.Errorf("got %d requests at the unit, want at most 2", within)
	}
	release()
	asking.Wait()
	for n := range 20 {
		want := outcome{http.StatusTooManyRequests, wire.TooMany} // one address has used up its share
		if n >= 20-within {
			want = outcome{http.StatusOK, ""}
		}
		if o := <-got; o != want {
			t.Errorf("request %d, of which %d are within the limit: got %+v, want %+v", n, within, o, want)
		}
	}
	if status, _, _ := c.request(t, wire.Header{Target: r.ID}, ""); status != http.StatusOK {
		t.Errorf("afterwards: got %d, want 200", status)
	}
}
