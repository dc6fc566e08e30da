package channel

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// A call holds the host's mutex for microseconds. If one call holds it at 50 looks in a
// row, it is stuck: a broken invariant, which only a restart ends.
const (
	watchEach = 100 * time.Millisecond
	watchMost = 50
)

// watchedMutex is a mutex whose current holder can be identified.
type watchedMutex struct {
	mu    sync.Mutex
	turns uint64        // guarded by mu: how often it was locked
	turn  atomic.Uint64 // of the holder; 0: not locked
}

// Lock locks it, and blocks until then.
func (w *watchedMutex) Lock() {
	w.mu.Lock()
	w.turns++
	w.turn.Store(w.turns)
}

// Unlock unlocks it.
func (w *watchedMutex) Unlock() {
	w.turn.Store(0)
	w.mu.Unlock()
}

// Watch looks at the host's mutex every 100 ms. It blocks until ctx is done, which is no
// error, or until the same call held the mutex at 50 looks in a row. Then the unit serves
// nothing any more, and the program should end: the error's reason is "internal".
//
// Watch counts looks, not time, so that a process that is stopped (SIGSTOP), suspended or
// migrated does not end: meanwhile it does not look either.
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
