package manager

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestHeirs: a cluster that says it inherits from another is pushed what is kept
// of that one, and what comes later, finds it by pull, and answers its requests
// when that one has no ready unit. A further unit of it is pushed the same again,
// but for what its cluster has sealed for itself.
func TestHeirs(t *testing.T) {
	w := newWorld(t)
	before := w.named(bustest.Keys)
	kept, later := item(1), item(2)
	if err := before.conn.Publish(kept); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the item is kept", func() bool { return w.holds(before.Cluster, kept) })

	after := w.named(bustest.Scoring)
	heard := listen(t, after.conn)
	w.claim(after, func(b *bus.Beat) { b.Task, b.Inherits = bustest.Keys, before.Identity })
	eventually(t, "what is kept is pushed to the heir", func() bool { return heard.times(kept) == 1 })
	if err := before.conn.Publish(later); err != nil {
		t.Fatal(err)
	}
	eventually(t, "what comes later is, too", func() bool { return heard.times(later) == 1 })
	if got, err := after.conn.Pull(t.Context(), later.Session); err != nil || got.Session != later.Session {
		t.Errorf("pulled by the heir: got %v, %v", got.Session, err)
	}
	if w.holds(after.Cluster, kept) {
		t.Error("what was only passed on is kept twice")
	}

	stranger := w.named(bustest.Short) // of another task, ready all the time
	_, err := stranger.conn.Pull(t.Context(), later.Session)
	wantReason(t, err, wire.NotFound)
	w.cool()
	gateway := w.client("gateway.example")
	if status, body, _ := gateway.request(t, wire.Header{Session: kept.Session}, ""); status != 200 || body != before.ID.String() {
		t.Errorf("while the former release serves: got %d by %q", status, body)
	}
	w.claim(before, func(b *bus.Beat) { b.Ready = false })
	for range 10 {
		if status, body, _ := gateway.request(t, wire.Header{Session: kept.Session}, ""); status != 200 || body != after.ID.String() {
			t.Errorf("afterwards: got %d by %q, want the heir", status, body)
		}
	}

	resealed := kept
	resealed.Bytes = []byte("under the heir's key")
	if err := after.conn.Publish(resealed); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the heir's own item is kept", func() bool { return w.holds(after.Cluster, resealed) })
	second := w.named(bustest.Scoring)
	w.claim(second, func(b *bus.Beat) { b.Task, b.Inherits = bustest.Keys, before.Identity })
	eventually(t, "a new heir is pushed what its cluster has not sealed", func() bool { return heard.times(later) == 2 })
	if got := heard.times(kept); got != 2 {
		t.Errorf("what the heirs have sealed for themselves: pushed %d times, want once and once as they sealed it", got)
	}
}

func TestLineage(t *testing.T) {
	one, two, three := bus.Cluster{1}, bus.Cluster{2}, bus.Cluster{3}
	id := func(n byte) wire.Digest { return wire.Digest{n} }
	l := newLineage()
	for _, c := range []struct {
		name    string
		cluster bus.Cluster
		beat    bus.Beat
		begins  bool
	}{
		{"the heir of a stranger", two, bus.Beat{Identity: id(2), Inherits: id(1)}, false},
		{"the first", one, bus.Beat{Identity: id(1), Task: "t"}, false},
		{"the heir", two, bus.Beat{Identity: id(2), Inherits: id(1)}, true},
		{"the heir again", two, bus.Beat{Identity: id(2), Inherits: id(1)}, false},
		{"another heir", three, bus.Beat{Identity: id(3), Inherits: id(1)}, true},
		{"its own heir", one, bus.Beat{Identity: id(1), Inherits: id(1), Task: "t"}, false},
	} {
		if got := l.heard(c.cluster, c.beat); got != c.begins {
			t.Errorf("%s: got %v, want %v", c.name, got, c.begins)
		}
	}
	if got := len(l.heirs(one)); got != 2 {
		t.Errorf("heirs: got %d, want 2", got)
	}
	if got := l.task([]bus.Cluster{{9}, one}); got != "t" {
		t.Errorf("task: got %q, want %q", got, "t")
	}
	for n := range 3 * maxClusters {
		l.heard(bus.Cluster{byte(n), byte(n >> 8), 1}, bus.Beat{Identity: wire.Digest{byte(n), byte(n >> 8), 1}})
	}
	if got := len(l.clusters); got > 2*maxClusters {
		t.Errorf("identities known: got %d, want at most %d", got, 2*maxClusters)
	}
}

// TestBequeathEnds: a relay that has ended is no wall.
func TestBequeathEnds(t *testing.T) {
	c := newCopies(1 << 20)
	r := newRelay(c, newLineage(), nil, Config{Clock: time.Now})
	c.put(bus.Cluster{1}, item(1), time.Now())
	close(r.ended)
	for range cap(r.arrived) + 1 {
		r.bequeath(bus.Cluster{1}, bus.Cluster{2})
	}
}
