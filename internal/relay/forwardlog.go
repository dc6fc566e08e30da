package relay

import (
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ForwardLog records for each unit the predecessors whose stored sessions it received. A unit
// receives them once, and again only after it sent no heartbeat for forwardAgainAfter, however
// often it reconnects.
type ForwardLog struct {
	mu       sync.Mutex
	lastSeen map[forward]time.Time // guarded by mu: time of the unit's last heartbeat
}

type forward struct {
	to   wire.UnitID
	from bus.Cluster
}

func NewForwardLog() *ForwardLog { return &ForwardLog{lastSeen: make(map[forward]time.Time)} }

// ShouldForward records a heartbeat of a unit, and reports whether the unit should receive the
// stored sessions of the cluster from.
func (b *ForwardLog) ShouldForward(to wire.UnitID, from bus.Cluster, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	last, known := b.lastSeen[forward{to, from}]
	b.lastSeen[forward{to, from}] = now
	return !known || now.Sub(last) > forwardAgainAfter
}

// RemoveExpired removes units without a recent heartbeat.
func (b *ForwardLog) RemoveExpired(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, last := range b.lastSeen {
		if now.Sub(last) > forwardAgainAfter {
			delete(b.lastSeen, k)
		}
	}
}

// Entries returns the number of recorded pairs of unit and predecessor.
func (b *ForwardLog) Entries() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.lastSeen)
}
