package manager

import (
	"sync"

	"github.com/cohort-tee/cohort/internal/wire"
)

// sessionSet is a set of sessions that exist although the manager may have no copy yet: a unit
// opened them, or served a request in them, through this gateway. It contains at least the last
// maxKnownSessions sessions that were inserted, and at most twice as many.
type sessionSet struct {
	mu               sync.Mutex
	recent, previous map[wire.SessionID]struct{} // guarded by mu
}

func (v *sessionSet) insert(id wire.SessionID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.recent == nil || len(v.recent) >= maxKnownSessions {
		v.recent, v.previous = make(map[wire.SessionID]struct{}), v.recent
	}
	v.recent[id] = struct{}{}
}

func (v *sessionSet) contains(id wire.SessionID) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, young := v.recent[id]
	_, old := v.previous[id]
	return young || old
}
