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
	r := newRegistry(Limits{Units: 3}.orDefault(), dialer{})
	defer r.close()
	good := bus.Beat{Address: "127.0.0.1:1", Ready: true}
	unit := func(n int) bus.Unit { return bus.Unit{ID: wire.UnitID{byte(n >> 8), byte(n), 1}} }
	if r.heard(unit(9), bus.Beat{}, itself, now) {
		t.Error("without an address: known")
	}
	for n := range 5 {
		if got := r.heard(unit(n), good, itself, now); got != (n < 3) {
			t.Errorf("unit %d: known %v, want %v", n, got, n < 3)
		}
	}
	if r.heard(unit(0), good, itself, now.Add(silence)) {
		t.Error("a known unit is new again")
	}
	moved := bus.Beat{Address: "127.0.0.1:2"}
	for _, row := range []struct {
		name    string
		by      source
		at      time.Duration
		address string
	}{
		{"by another manager, while the unit is heard", elsewhere, 2 * silence, good.Address},
		{"by another manager, when it is not", elsewhere, 2*silence + 1, moved.Address},
		{"twice within a second", itself, 2*silence + settleEvery, moved.Address},
		{"by itself a second later", itself, 2*silence + settleEvery + 1, good.Address},
	} {
		to := moved
		if row.by == itself {
			to = good
		}
		r.heard(unit(0), to, row.by, now.Add(row.at))
		if got := r.units[unit(0).ID].beat.Address; got != row.address {
			t.Errorf("moved %s: at %s, want %s", row.name, got, row.address)
		}
	}
	r.forget(t.Context(), now.Add(3*silence))
	if n, _ := r.size(); n != 1 {
		t.Errorf("got %d units, want the one that beat again", n)
	}
	crowd := newRegistry(Limits{}.orDefault(), dialer{})
	defer crowd.close()
	for n := range maxClusters + 1 {
		u := unit(n)
		u.Cluster = bus.Cluster{byte(n >> 8), byte(n)}
		if got := crowd.heard(u, good, itself, now); got != (n < maxClusters) {
			t.Errorf("cluster %d: known %v", n, got)
		}
	}
}
