package channel

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// A host's mutex is held for microseconds. One holder for 50 looks in a row is
// stuck: a broken invariant that nothing but another start ends.
const (
	watchEach = 100 * time.Millisecond
	watchMost = 50
)

// watched is a mutex that says who holds it.
type watched struct {
	mu    sync.Mutex
	turns uint64        // guarded by mu: how often it was locked
	turn  atomic.Uint64 // of who holds it; 0: nobody
}

// Lock locks it, and blocks until then.
func (w *watched) Lock() {
	w.mu.Lock()
	w.turns++
	w.turn.Store(w.turns)
}

// Unlock unlocks it.
func (w *watched) Unlock() {
	w.turn.Store(0)
	w.mu.Unlock()
}

// Watch looks at the host every 100 ms, and blocks until ctx is done, which is no
// error, or until the host was held by one and the same call at 50 looks in a
// row. Then the unit serves nothing any more, and the program should end: the
// error's reason is "internal".
//
// The looks are counted, not the time between them, so that a process that is
// stopped (SIGSTOP), suspended or migrated does not end for it: it looks as
// little as it works.
func (h *Host) Watch(ctx context.Context) error {
	ticker := time.NewTicker(watchEach)
	defer ticker.Stop()
	looks, last := 0, uint64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		turn := h.mu.turn.Load()
		if turn == 0 || turn != last {
			looks, last = 0, turn
		}
		if turn != 0 {
			looks++
		}
		if looks == watchMost {
			return wire.Refuse(wire.Internal, "unit: looks that found the sessions held by the same call", looks, watchMost-1)
		}
	}
}
