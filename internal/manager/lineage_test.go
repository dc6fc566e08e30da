package manager

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/relay"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestHeirs: a release that inherits from another of its task is pushed the stored and the later
// items of that release, can pull them, and serves its requests when that release has no ready
// unit. A further unit of the heir gets the same, except items that its cluster has already
// resealed.
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

	stranger := w.named(bustest.Short) // of a different task, always ready
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
	time.Sleep(20 * relay.BatchGap)
	if got, again, first := alsoHeard.times(stored), alsoHeard.times(later), heard.times(later); got != 0 || again != 1 || first != 1 {
		t.Errorf("pushed %d times what the heirs have sealed for themselves, and %d and %d times the other, want never and once each", got, again, first)
	}
}
