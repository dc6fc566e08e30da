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
// queues the other calls. Addresses take turns, and within one address its senders, however
// many calls each of them has queued. A cancelled call leaves the queue at once. It is safe
// for concurrent use.
type Turns struct {
	what string
	most int

	mu      sync.Mutex
	free    int   // guarded by mu
	waiters queue // guarded by mu: that wait
}

// NewTurns lets so many at a time go on and most others wait, both at least 1.
// What names the quota of those that wait, in refusals and metrics.
func NewTurns(what string, places, most int) *Turns {
	return &Turns{what: what, most: most, free: places}
}

// Acquire waits for the turn of a sender at an address; the caller then goes on until
// [Turns.Release]. The name of the sender is its own word: it takes from no other
// address. It returns the error of ctx when that ends first, and refuses with
// "overload" where too many wait: the address with the most of them, and of it the
// sender, loses the one that came last.
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
			t.releaseNext() // it came too late
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

// enqueue returns the call that waits, or nil when it need not or may not.
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

// Release ends what [Turns.Acquire] began, and lets the next go on.
func (t *Turns) Release() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.releaseNext()
}

// Waiting is how many wait.
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

// waiter is one that waits. Turns.mu guards it, but turn.
type waiter struct {
	queues   []*queue // the queues that contain it, the outermost first
	turn     chan struct{}
	released bool
	err      error // once it is called
}

// release ends the wait of the call: with its turn, or with an error.
func (c *waiter) release(err error) {
	c.released, c.err = true, err
	close(c.turn)
}

// queue is a line of calls, or of lines that come in turn.
type queue struct {
	key     string
	queues  []*queue  // the next first; none of them is empty
	calls   []*waiter // the first first
	waiting int       // in all
}

// pushBack puts a call at the end of the line that the keys name.
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

// popFront removes and returns the call whose turn it is, and puts its lines behind the
// others. The queue is not empty.
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

// longestLast is the call that came last of the longest line in the longest; of equal
// ones, of that whose turn is last.
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
