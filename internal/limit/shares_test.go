package limit

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// take takes one after the other for an address and gives how many it got.
func take(s *Shares, from string, n int) (got int) {
	for got < n && s.Acquire(netip.MustParseAddr(from), 1) == nil {
		got++
	}
	return got
}

// TestShares: an address gets what is free and no more, so that something is left
// for the next, and all comes back.
func TestShares(t *testing.T) {
	s := NewShares("test: places", 100)
	if got := take(s, "192.0.2.1", 100); got != 50 {
		t.Errorf("alone: got %d, want 50", got)
	}
	if got := take(s, "192.0.2.2", 100); got != 25 {
		t.Errorf("beside it: got %d, want 25", got)
	}
	err := s.Acquire(netip.MustParseAddr("192.0.2.1"), 1)
	if refusal := (*wire.Refusal)(nil); !errors.As(err, &refusal) || refusal.Reason != wire.TooMany || refusal.Rule != "test: places, of one address" {
		t.Errorf("more than its share: got %v", err)
	}
	s.Release(netip.MustParseAddr("192.0.2.1"), 50)
	s.Release(netip.MustParseAddr("192.0.2.2"), 25)
	if s.InUse() != 0 || len(s.byAddress) != 0 {
		t.Errorf("given back: got %d taken by %d", s.InUse(), len(s.byAddress))
	}
}

// TestSharesOfMany: each of fifty addresses takes what it can, again and again, and
// one that comes new still finds as much as they have.
func TestSharesOfMany(t *testing.T) {
	s := NewShares("test: places", 10_000)
	for range 100 {
		for i := range 50 {
			take(s, fmt.Sprintf("198.51.100.%d", i), 20)
		}
	}
	if got := take(s, "192.0.2.1", 10_000); got < 90 {
		t.Errorf("beside fifty: got %d, want at least 90", got)
	}
}

// TestSharesOfSizes: sizes at the ends of their range are taken whole or not.
func TestSharesOfSizes(t *testing.T) {
	at, other := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for _, c := range []struct {
		n    int
		want wire.Reason
	}{{0, ""}, {1, ""}, {100, ""}, {101, wire.Overload}, {1 << 31, wire.Overload}, {math.MaxInt, wire.Overload}, {-1, wire.Overload}, {math.MinInt, wire.Overload}} {
		s := NewShares("test: bytes", 100)
		err := s.Acquire(at, c.n)
		if got := wire.ReasonOf(err); err != nil && got != c.want || (err == nil) != (c.want == "") {
			t.Errorf("%d: got %v, want %q", c.n, err, c.want)
		}
		if err != nil && s.InUse() != 0 {
			t.Errorf("%d: refused, and %d taken", c.n, s.InUse())
		}
	}
	s := NewShares("test: bytes", 100)
	if s.Acquire(at, 40) != nil || s.Acquire(other, 40) != nil {
		t.Error("two that fit were refused")
	}
	if err := s.Acquire(other, 1); !errors.Is(err, wire.TooMany) {
		t.Errorf("more than is free: got %v, want %v", err, wire.TooMany)
	}
}
