package channel

import (
	"math/rand/v2"
	"testing"
)

// TestWindow compares the window with a set of all numbers seen.
func TestWindow(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var w window
	seen, newest := map[uint64]bool{}, uint64(0)
	for range 200_000 {
		n := 1 + rng.Uint64N(newest+windowSize/2)
		if rng.IntN(1000) == 0 {
			n = newest + windowSize - 1 + rng.Uint64N(3) // jumps of about the whole width
		}
		want := !seen[n] && n+windowSize > newest
		if got := w.takeNumber(n); got != want {
			t.Fatalf("number %d, newest %d: got %v, want %v", n, newest, got, want)
		}
		seen[n], newest = true, max(newest, n)
	}
}

func TestWindowEdges(t *testing.T) {
	for _, c := range []struct {
		name string
		take []uint64
		want []bool
	}{
		{"once", []uint64{1, 1}, []bool{true, false}},
		{"out of order", []uint64{3, 1, 2, 1}, []bool{true, true, true, false}},
		{"the oldest that is remembered", []uint64{1024, 1, 1}, []bool{true, true, false}},
		{"too old to tell", []uint64{1025, 1}, []bool{true, false}},
		{"the last number there is", []uint64{1<<64 - 1, 1<<64 - 1, 1<<64 - 2}, []bool{true, false, true}},
	} {
		var w window
		for i, n := range c.take {
			if got := w.takeNumber(n); got != c.want[i] {
				t.Errorf("%s: number %d: got %v, want %v", c.name, n, got, c.want[i])
			}
		}
	}
}
