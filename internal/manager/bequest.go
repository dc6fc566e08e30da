package manager

import (
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// bequests records which units were sent the stored sessions of which predecessor: once for
// each unit, and again only after the unit was away, however often it reconnects.
type bequests struct {
	mu   sync.Mutex
	last map[bequest]time.Time // guarded by mu: last heartbeat of the unit
}

type bequest struct {
	to   wire.UnitID
	from bus.Cluster
}

func newBequests() *bequests { return &bequests{last: make(map[bequest]time.Time)} }

// begins records a heartbeat of a unit, and reports whether to send it the stored sessions.
func (b *bequests) begins(to wire.UnitID, from bus.Cluster, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	last, known := b.last[bequest{to, from}]
	b.last[bequest{to, from}] = now
	return !known || now.Sub(last) > bequeathEvery
}

// prune removes units without a recent heartbeat.
func (b *bequests) prune(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, last := range b.last {
		if now.Sub(last) > bequeathEvery {
			delete(b.last, k)
		}
	}
}
