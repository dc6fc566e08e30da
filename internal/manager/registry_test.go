package manager

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestRegistryBounds: units cannot fill a manager's memory.
func TestRegistryBounds(t *testing.T) {
	now := time.Now()
	r := newRegistry(Limits{Units: 3}.withDefaults(), dialer{})
	defer r.close()
	good := bus.Heartbeat{Address: "127.0.0.1:1", Ready: true}
	unit := func(n int) bus.Unit { return bus.Unit{ID: wire.UnitID{byte(n >> 8), byte(n), 1}} }
	if r.recordHeartbeat(unit(9), bus.Heartbeat{}, ownConnection, now) {
		t.Error("without an address: known")
	}
	for n := range 5 {
		if got := r.recordHeartbeat(unit(n), good, ownConnection, now); got != (n < 3) {
			t.Errorf("unit %d: known %v, want %v", n, got, n < 3)
		}
	}
	if r.recordHeartbeat(unit(0), good, ownConnection, now.Add(silence)) {
		t.Error("a known unit is new again")
	}
	moved := bus.Heartbeat{Address: "127.0.0.1:2"}
	for _, row := range []struct {
		name    string
		by      reporter
		at      time.Duration
		address string
	}{
		{"by another manager, while the unit is heard", otherManager, 2 * silence, good.Address},
		{"by another manager, when it is not", otherManager, 2*silence + 1, moved.Address},
		{"twice within a second", ownConnection, 2*silence + addressInterval, moved.Address},
		{"by itself a second later", ownConnection, 2*silence + addressInterval + 1, good.Address},
	} {
		to := moved
		if row.by == ownConnection {
			to = good
		}
		r.recordHeartbeat(unit(0), to, row.by, now.Add(row.at))
		if got := r.units[unit(0).ID].heartbeat.Address; got != row.address {
			t.Errorf("moved %s: at %s, want %s", row.name, got, row.address)
		}
	}
	r.dropSilent(t.Context(), now.Add(3*silence))
	if n, _ := r.counts(); n != 1 {
		t.Errorf("got %d units, want the one that beat again", n)
	}
	crowd := newRegistry(Limits{}.withDefaults(), dialer{})
	defer crowd.close()
	for n := range maxClusters + 1 {
		u := unit(n)
		u.Cluster = bus.Cluster{byte(n >> 8), byte(n)}
		if got := crowd.recordHeartbeat(u, good, ownConnection, now); got != (n < maxClusters) {
			t.Errorf("cluster %d: known %v", n, got)
		}
	}
}
