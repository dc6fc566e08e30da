package limit

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Turns lets a few at a time do what takes a while, such as asking a TEE for
// evidence, and the others wait. Addresses come in turn, and of one address its
// senders, however many each of them has waiting. A call that is cancelled leaves
// at once. It is safe for concurrent use.
type Turns struct {
	what string
	most int

	mu    sync.Mutex
	free  int  // guarded by mu
	calls line // guarded by mu: that wait
}

// NewTurns lets so many at a time go on and most others wait, both at least 1.
// What names the quota of those that wait, in refusals and metrics.
func NewTurns(what string, places, most int) *Turns {
	return &Turns{what: what, most: most, free: places}
}

// Wait waits for the turn of a sender at an address; the caller then goes on until
// [Turns.Done]. The name of the sender is its own word: it takes from no other
// address. It returns the error of ctx when that ends first, and refuses with
// "overload" where too many wait: the address with the most of them, and of it the
// sender, loses the one that came last.
func (t *Turns) Wait(ctx context.Context, from netip.Addr, sender string) error {
	c, err := t.join(from, sender)
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
	if c.called {
		if c.err == nil {
			t.next() // it came too late
		}
	} else {
		t.calls.forget(c)
	}
	return context.Cause(ctx)
}

// Try takes a turn if one is free, and reports whether it did.
func (t *Turns) Try() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free == 0 {
		return false
	}
	t.free--
	return true
}

// join returns the call that waits, or nil when it need not or may not.
func (t *Turns) join(from netip.Addr, sender string) (*call, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.free > 0 {
		t.free--
		return nil, nil
	}
	c := &call{turn: make(chan struct{})}
	t.calls.add(c, from.String(), sender)
	if t.calls.waiting > t.most {
		last := t.calls.heaviest()
		t.calls.forget(last)
		last.release(wire.Refuse(wire.Overload, t.what, t.most, fmt.Sprint("below ", t.most)))
	}
	return c, nil
}

// Done ends what [Turns.Wait] began, and lets the next go on.
func (t *Turns) Done() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next()
}

// Waiting is how many wait.
func (t *Turns) Waiting() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.calls.waiting
}

func (t *Turns) next() {
	if t.calls.waiting == 0 {
		t.free++
		return
	}
	t.calls.pop().release(nil)
}

// call is one that waits. Turns.mu guards it, but turn.
type call struct {
	way    []*line // the lines it stands in, the outermost first
	turn   chan struct{}
	called bool
	err    error // once it is called
}

// release ends the wait of the call: with its turn, or with an error.
func (c *call) release(err error) {
	c.called, c.err = true, err
	close(c.turn)
}

// line is a line of calls, or of lines that come in turn.
type line struct {
	key     string
	lines   []*line // the next first; none of them is empty
	calls   []*call // the first first
	waiting int     // in all
}

// add puts a call at the end of the line that the keys name.
func (l *line) add(c *call, keys ...string) {
	l.waiting++
	c.way = append(c.way, l)
	if len(keys) == 0 {
		l.calls = append(l.calls, c)
		return
	}
	i := slices.IndexFunc(l.lines, func(below *line) bool { return below.key == keys[0] })
	if i < 0 {
		i = len(l.lines)
		l.lines = append(l.lines, &line{key: keys[0]})
	}
	l.lines[i].add(c, keys[1:]...)
}

// pop takes the call whose turn it is, and puts the lines it stood in behind the
// others. There is one.
func (l *line) pop() *call {
	if len(l.lines) == 0 {
		c := l.calls[0]
		l.forget(c)
		return c
	}
	below := l.lines[0]
	c := below.pop()
	l.waiting--
	if l.lines = l.lines[1:]; below.waiting > 0 {
		l.lines = append(l.lines, below)
	}
	return c
}

// forget takes a call out of the line and of those in it that it stands in.
func (l *line) forget(c *call) {
	l.waiting--
	if i := slices.Index(l.calls, c); i >= 0 {
		l.calls = slices.Delete(l.calls, i, i+1)
		return
	}
	i := slices.IndexFunc(l.lines, func(below *line) bool { return slices.Contains(c.way, below) })
	if l.lines[i].forget(c); l.lines[i].waiting == 0 {
		l.lines = slices.Delete(l.lines, i, i+1)
	}
}

// heaviest is the call that came last of the longest line in the longest; of equal
// ones, of that whose turn is last.
func (l *line) heaviest() *call {
	if len(l.lines) == 0 {
		return l.calls[len(l.calls)-1]
	}
	longest := l.lines[0]
	for _, below := range l.lines {
		if below.waiting >= longest.waiting {
			longest = below
		}
	}
	return longest.heaviest()
}
