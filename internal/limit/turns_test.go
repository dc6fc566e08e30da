package limit

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"time"

	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// queued has calls wait, "ADDRESS SENDER" one after the other, while the only place
// is taken, then lets each go on after the one before, and gives who went on in
// which order and who was refused.
func queued(t *testing.T, most int, calls ...string) (order, refused []string) {
	bubble.Test(t, func(t *testing.T) {
		turns := NewTurns("test: calls that wait", 1, most)
		if err := turns.Acquire(t.Context(), netip.Addr{}, ""); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		for _, call := range calls {
			go func() {
				address, sender, _ := strings.Cut(call, " ")
				err := turns.Acquire(t.Context(), netip.MustParseAddr("192.0.2."+address), sender)
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					order = append(order, call)
					turns.Release()
				} else if errors.Is(err, wire.Overload) {
					refused = append(refused, call)
				}
			}()
			synctest.Wait()
		}
		turns.Release()
		synctest.Wait()
		if turns.free != 1 || turns.waiters.waiting != 0 || len(turns.waiters.queues) != 0 {
			t.Errorf("in the end: got %d free, %d that wait", turns.free, turns.waiters.waiting)
		}
	})
	return order, refused
}

// TestTurns: addresses come in turn, and of one address its senders; where there
// are too many, the longest line of the longest loses its last.
func TestTurns(t *testing.T) {
	for _, c := range []struct {
		name           string
		most           int
		calls          []string
		order, refused []string
	}{
		{"by address", 9, []string{"1 a", "1 a", "1 a", "2 a", "3 a"}, []string{"1 a", "2 a", "3 a", "1 a", "1 a"}, nil},
		{"by sender of an address", 9, []string{"1 a", "1 a", "1 a", "1 b"}, []string{"1 a", "1 b", "1 a", "1 a"}, nil},
		{"made-up senders take from their own address", 9, []string{"1 a", "1 b", "1 c", "1 d", "2 x"}, []string{"1 a", "2 x", "1 b", "1 c", "1 d"}, nil},
		{"a full line", 3, []string{"1 a", "1 a", "1 b", "2 a", "1 a"}, []string{"1 a", "2 a", "1 b"}, []string{"1 a", "1 a"}},
		{"a newcomer to a fair line", 2, []string{"1 a", "2 a", "2 b"}, []string{"1 a", "2 a"}, []string{"2 b"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			order, refused := queued(t, c.most, c.calls...)
			if !slices.Equal(order, c.order) || !slices.Equal(refused, c.refused) {
				t.Errorf("got %q, refused %q, want %q, refused %q", order, refused, c.order, c.refused)
			}
		})
	}
}

// TestCancelledTurns: a call that is cancelled leaves at once and holds up nobody.
func TestCancelledTurns(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		turns, at := NewTurns("test: calls that wait", 1, 64), netip.MustParseAddr("192.0.2.1")
		if err := turns.Acquire(t.Context(), at, ""); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var all sync.WaitGroup
		for n := range 64 {
			all.Go(func() {
				if err := turns.Acquire(ctx, at, fmt.Sprint(n%3)); !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
				}
			})
		}
		all.Wait()
		if turns.waiters.waiting != 0 || len(turns.waiters.queues) != 0 {
			t.Errorf("got %d that wait, want none", turns.waiters.waiting)
		}
		turns.Release()
		if err := turns.Acquire(t.Context(), at, ""); err != nil {
			t.Errorf("the next: got %v", err)
		}
	})
}

// TestTurnsTogether: under cancellation at any moment no place is lost and no more
// are given than there are.
func TestTurnsTogether(t *testing.T) {
	turns := NewTurns("test: calls that wait", 2, 8)
	var all sync.WaitGroup
	var mu sync.Mutex
	most, now := 0, 0
	for n := range 64 {
		all.Go(func() {
			for i := range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration((n*i)%7)*10*time.Microsecond)
				if turns.Acquire(ctx, netip.AddrFrom4([4]byte{byte(n % 5)}), "") == nil {
					mu.Lock()
					now++
					most = max(most, now)
					mu.Unlock()
					runtime.Gosched()
					mu.Lock()
					now--
					mu.Unlock()
					turns.Release()
				}
				cancel()
			}
		})
	}
	all.Wait()
	if turns.free != 2 || most > 2 || turns.waiters.waiting != 0 {
		t.Errorf("got %d free, at most %d at once, %d that wait; want 2, 2, 0", turns.free, most, turns.waiters.waiting)
	}
}
