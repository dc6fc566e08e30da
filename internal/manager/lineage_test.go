package manager

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestHeirs: a release that says it inherits from another of its task is pushed
// what is kept of that one, and what comes later, finds it by pull, and responds to
// its requests when that one has no ready unit. A further unit is pushed the same,
// but for what its cluster has sealed for itself.
func TestHeirs(t *testing.T) {
	w := newWorld(t)
	before := w.named(bustest.Keys)
	stored, later := item(1, before.Identity), item(2, before.Identity)
	if err := before.conn.Publish(stored); err != nil {
		t.Fatal(err)
	}
	testworld.Eventually(t, "the item is kept", func() bool { return w.holds(before.Cluster, stored) })

	after := w.namedOf(w.authority.Successor())
	heard := listen(t, after.conn)
	inherit := func(b *bus.Heartbeat) { b.Inherits = before.Identity }
	w.claim(after, inherit)
	testworld.Eventually(t, "what is kept is pushed to the heir", func() bool { return heard.times(stored) == 1 })
	if err := before.conn.Publish(later); err != nil {
		t.Fatal(err)
	}
	testworld.Eventually(t, "what comes later is, too", func() bool { return heard.times(later) == 1 })
	if got, err := after.conn.FetchCopy(t.Context(), later.Session); err != nil || got.Session != later.Session {
		t.Errorf("pulled by the heir: got %v, %v", got.Session, err)
	}
	if w.holds(after.Cluster, stored) {
		t.Error("what was only passed on is kept twice")
	}

	stranger := w.named(bustest.Short) // of another task, ready all the time
	_, err := stranger.conn.FetchCopy(t.Context(), later.Session)
	testworld.Refused(t, err, wire.NotFound)
	w.cool()
	gateway := w.client("gateway.example")
	if status, body, _ := gateway.request(t, wire.Header{Session: stored.Session}, ""); status != 200 || body != before.ID.String() {
		t.Errorf("while the former release serves: got %d by %q", status, body)
	}
	w.claim(before, func(b *bus.Heartbeat) { b.Ready = false })
	for range 10 {
		if status, body, _ := gateway.request(t, wire.Header{Session: stored.Session}, ""); status != 200 || body != after.ID.String() {
			t.Errorf("afterwards: got %d by %q, want the heir", status, body)
		}
	}

	resealed := item(1, after.Identity)
	if err := after.conn.Publish(resealed); err != nil {
		t.Fatal(err)
	}
	testworld.Eventually(t, "the heir's own item is kept", func() bool { return w.holds(after.Cluster, resealed) })
	second := w.connect(w.authority.Successor())
	alsoHeard := listen(t, second)
	claims := bus.Heartbeat{Address: "127.0.0.1:1"}
	inherit(&claims)
	testworld.NoError(t, second.SendHeartbeat(claims))
	testworld.Eventually(t, "a new heir is pushed what its cluster has not sealed", func() bool { return alsoHeard.times(later) == 1 })
	testworld.NoError(t, second.SendHeartbeat(claims))
	time.Sleep(20 * batchGap)
	if got, again, first := alsoHeard.times(stored), alsoHeard.times(later), heard.times(later); got != 0 || again != 1 || first != 1 {
		t.Errorf("pushed %d times what the heirs have sealed for themselves, and %d and %d times the other, want never and once each", got, again, first)
	}
}

func TestLineage(t *testing.T) {
	unit := func(n byte, task string) bus.Unit {
		return bus.Unit{Cluster: bus.Cluster{n}, Identity: wire.Digest{n}, Task: task}
	}
	role := func(n byte, role string) bus.Unit {
		return bus.Unit{Cluster: bus.Cluster{n}, Identity: wire.Digest{n}, Group: "t", Role: role}
	}
	l := newSuccessors()
	for _, row := range []struct {
		name     string
		unit     bus.Unit
		inherits byte
		heirs    int // of the first afterwards
	}{
		{"the heir of an unknown release", unit(2, "t"), 1, 0},
		{"the first", unit(1, "t"), 0, 0},
		{"the heir", unit(2, "t"), 1, 1},
		{"the heir again", unit(2, "t"), 1, 1},
		{"another heir", unit(3, "t"), 1, 2},
		{"another task", unit(4, "u"), 1, 2},
		{"a group of the task's name", role(5, "r"), 1, 2},
		{"its own heir", unit(1, "t"), 1, 2},
		{"a role", role(6, "r"), 0, 2},
		{"another role", role(7, "s"), 6, 2},
	} {
		l.record(row.unit, wire.Digest{row.inherits})
		if got := len(l.successorsOf(bus.Cluster{1})); got != row.heirs {
			t.Errorf("%s: got %d heirs, want %d", row.name, got, row.heirs)
		}
	}
	if got := l.successorsOf(bus.Cluster{6}); len(got) > 0 {
		t.Errorf("of a role: got %v, want none", got)
	}
	if got := l.holderOf([]bus.Cluster{{9}, {1}}); got != "t" {
		t.Errorf("holder: got %q, want %q", got, "t")
	}
	for n := range 3 * maxClusters {
		u := unit(byte(n), "t")
		u.Cluster[1], u.Identity[1] = byte(n>>8)+1, byte(n>>8)+1
		l.record(u, wire.Digest{})
	}
	if got := len(l.clusters); got > 2*maxClusters {
		t.Errorf("identities known: got %d, want at most %d", got, 2*maxClusters)
	}
}

// TestBequests: a unit that comes back is pushed what it inherits again only
// after it was away for a while.
func TestBequests(t *testing.T) {
	b, now := newForwardLog(), time.Now()
	unit, from := wire.UnitID{1}, bus.Cluster{1}
	for _, row := range []struct {
		after  time.Duration
		begins bool
	}{{0, true}, {time.Second, false}, {forwardAgainAfter, false}, {2 * forwardAgainAfter, false}, {3*forwardAgainAfter + 1, true}} {
		if got := b.shouldForward(unit, from, now.Add(row.after)); got != row.begins {
			t.Errorf("after %v: got %v, want %v", row.after, got, row.begins)
		}
	}
	if b.removeExpired(now.Add(5 * forwardAgainAfter)); len(b.lastSeen) != 0 {
		t.Errorf("got %d units, want none", len(b.lastSeen))
	}
}

// TestBequeathEnds: a unit that takes nothing ends what it is pushed.
func TestBequeathEnds(t *testing.T) {
	c := newCopies(1 << 20)
	r := newRelay(c, newSuccessors(), nil, Config{Clock: time.Now})
	for n := range 1000 {
		c.store(bus.Cluster{1}, item(n), time.Now())
	}
	batches := 0
	r.forwardSessions(bus.Cluster{1}, bus.Unit{Cluster: bus.Cluster{2}}, func(b []byte) bool {
		if batches++; len(b) == 0 || len(b) > bus.MaxBatch {
			t.Errorf("got a batch of %d bytes", len(b))
		}
		return batches < 2
	})
	if batches != 2 {
		t.Errorf("got %d batches, want the end after two", batches)
	}
}
