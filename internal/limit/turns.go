package limit

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Turns limits the concurrency of slow operations, such as collecting evidence from a TEE, and
// queues further calls. Addresses take turns, and so do the senders of one address, regardless
// of the number of calls that each has queued. A cancelled call leaves the queue at once. It is
// safe for concurrent use.
type Turns struct {
	what string
	most int

	mu      sync.Mutex
	free    int   // guarded by mu
	waiters queue // guarded by mu: waiting calls
}

// NewTurns sets the number of places for concurrent operations, and the maximum number most of
// waiting calls, both at least 1. The quota of waiting calls has the name what in refusals and
// metrics.
func NewTurns(what string, places, most int) *Turns {
	return &Turns{what: what, most: most, free: places}
}

// Acquire waits for the turn of a sender at an address. The caller ends the turn with
// [Turns.Release]. The name of the sender is unverified, but affects only the turns of its own
// address. Acquire returns the cause of ctx if ctx ends first. If too many calls wait, a call is
// refused with "overload": the last call of the sender with the most waiting calls, at the
// address with the most waiting calls.
func (t *Turns) Acquire(ctx context.Context, from netip.Addr, sender string) error {
	c, err := t.enqueue(from, sender)
	if c == nil {
		return err
	}
	select {
	case <-c.turn:
		return c.err
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.released {
		if c.err == nil {
			t.releaseNext() // the turn came too late: pass it on
		}
	} else {
		t.waiters.remove(c)
	}
	return context.Cause(ctx)
}

// TryAcquire takes a turn if one is free, and reports whether it did.
func (t *Turns) TryAcquire() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free == 0 {
		return false
	}
	t.free--
	return true
}

// enqueue adds a call to the queue and returns it, or takes a free turn and returns nil.
func (t *Turns) enqueue(from netip.Addr, sender string) (*waiter, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free > 0 {
		t.free--
		return nil, nil
	}
	c := &waiter{turn: make(chan struct{})}
	t.waiters.pushBack(c, from.String(), sender)
	if t.waiters.waiting > t.most {
		last := t.waiters.longestLast()
		t.waiters.remove(last)
		last.release(wire.Refuse(wire.Overload, t.what, t.most, fmt.Sprint("below ", t.most)))
	}
	return c, nil
}

// Release ends a turn that [Turns.Acquire] or [Turns.TryAcquire] started, and gives it to the
// next waiting call.
func (t *Turns) Release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.releaseNext()
}

// Waiting returns the number of waiting calls.
func (t *Turns) Waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.waiters.waiting
}

func (t *Turns) releaseNext() {
	if t.waiters.waiting == 0 {
		t.free++
		return
	}
	t.waiters.popFront().release(nil)
}

// waiter is a waiting call. Turns.mu guards its fields except turn.
type waiter struct {
	queues   []*queue // the queues that contain it, the outermost first
	turn     chan struct{}
	released bool
	err      error // nil, or the refusal; set before turn is closed
}

// release ends the wait of the call, with its turn if err is nil.
func (c *waiter) release(err error) {
	c.released, c.err = true, err
	close(c.turn)
}

// queue is a queue of calls, or a queue of queues that take turns.
type queue struct {
	key     string
	queues  []*queue  // the next one first; none is empty
	calls   []*waiter // the longest-waiting first
	waiting int       // number of calls in it, at all levels
}

// pushBack appends a call to the queue that the keys name, one key for each level.
func (l *queue) pushBack(c *waiter, keys ...string) {
	l.waiting++
	c.queues = append(c.queues, l)
	if len(keys) == 0 {
		l.calls = append(l.calls, c)
		return
	}
	i := slices.IndexFunc(l.queues, func(below *queue) bool { return below.key == keys[0] })
	if i < 0 {
		i = len(l.queues)
		l.queues = append(l.queues, &queue{key: keys[0]})
	}
	l.queues[i].pushBack(c, keys[1:]...)
}

// popFront removes and returns the call whose turn it is, and moves its queues behind the
// others. The queue must not be empty.
func (l *queue) popFront() *waiter {
	if len(l.queues) == 0 {
		c := l.calls[0]
		l.remove(c)
		return c
	}
	below := l.queues[0]
	c := below.popFront()
	l.waiting--
	if l.queues = l.queues[1:]; below.waiting > 0 {
		l.queues = append(l.queues, below)
	}
	return c
}

// remove removes a call from the queue and from the queues in it.
func (l *queue) remove(c *waiter) {
	l.waiting--
	if i := slices.Index(l.calls, c); i >= 0 {
		l.calls = slices.Delete(l.calls, i, i+1)
		return
	}
	i := slices.IndexFunc(l.queues, func(below *queue) bool { return slices.Contains(c.queues, below) })
	if l.queues[i].remove(c); l.queues[i].waiting == 0 {
		l.queues = slices.Delete(l.queues, i, i+1)
	}
}

// longestLast returns the newest call in the longest queue of the longest queue. Among queues of
// equal length it chooses the one whose turn is last.
func (l *queue) longestLast() *waiter {
	if len(l.queues) == 0 {
		return l.calls[len(l.calls)-1]
	}
	longest := l.queues[0]
	for _, below := range l.queues {
		if below.waiting >= longest.waiting {
			longest = below
		}
	}
	return longest.longestLast()
}
