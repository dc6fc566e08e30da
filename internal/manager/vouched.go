package manager

import (
	"sync"

	"github.com/cohort-tee/cohort/internal/wire"
)

// vouched is a set of sessions that a unit has opened, or served a request of, through this
// gateway. They exist although the manager may not have a copy yet. It contains at least the
// last maxVouched sessions, and at most twice as many.
type vouched struct {
	mu         sync.Mutex
	young, old map[wire.SessionID]struct{} // guarded by mu
}

func (v *vouched) add(id wire.SessionID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.young == nil || len(v.young) >= maxVouched {
		v.young, v.old = make(map[wire.SessionID]struct{}), v.young
	}
	v.young[id] = struct{}{}
}

func (v *vouched) has(id wire.SessionID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, young := v.young[id]
	_, old := v.old[id]
	return young || old
}
