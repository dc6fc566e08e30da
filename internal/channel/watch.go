package channel

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Limits of [Host.Watch]. A call normally holds the host's mutex for microseconds. A call that
// holds it at 50 checks in a row is stuck: an invariant is broken, and only a restart helps.
const (
	watchEach = 100 * time.Millisecond
	watchMost = 50
)

// watchedMutex is a mutex whose current holder can be identified.
type watchedMutex struct {
	mu    sync.Mutex
	turns uint64        // guarded by mu: number of times it was locked
	turn  atomic.Uint64 // value of turns for the current holder; 0: not locked
}

// Lock locks w. It blocks until w is available.
func (w *watchedMutex) Lock() {
	w.mu.Lock()
	w.turns++
	w.turn.Store(w.turns)
}

// Unlock unlocks w.
func (w *watchedMutex) Unlock() {
	w.turn.Store(0)
	w.mu.Unlock()
}

// Watch checks the host's mutex every 100 ms. It blocks until ctx is done and then returns nil,
// or until the same call has held the mutex at 50 checks in a row. Then it returns an error with
// reason "internal": the unit can no longer serve, and the program should exit.
//
// Watch counts checks instead of time, because a process that is stopped (SIGSTOP), suspended or
// migrated must not exit for that reason: it makes no checks meanwhile.
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
