package manager

import (
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// bequests is which units were pushed what is kept of which cluster that they
// inherit from: each unit once, and again only after it was away for a while,
// however often it comes back.
type bequests struct {
	mu   sync.Mutex
	last map[bequest]time.Time // guarded by mu: when the unit was heard since
}

type bequest struct {
	to   wire.UnitID
	from bus.Cluster
}

func newBequests() *bequests { return &bequests{last: make(map[bequest]time.Time)} }

// begins takes in that the unit is there, and reports whether it is to be
// pushed what is kept.
func (b *bequests) begins(to wire.UnitID, from bus.Cluster, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	last, known := b.last[bequest{to, from}]
	b.last[bequest{to, from}] = now
	return !known || now.Sub(last) > bequeathEvery
}

// prune forgets units that are gone.
func (b *bequests) prune(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, last := range b.last {
		if now.Sub(last) > bequeathEvery {
			delete(b.last, k)
		}
	}
}
