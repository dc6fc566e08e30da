package channel

import "time"

// MaxAhead is the maximum time by which a request's NotAfter may be ahead of the unit's time.
// So a session may yield 2 minutes after its last use.
const MaxAhead = 2 * time.Minute

// passed reports whether a time is after end, in Unix milliseconds. This one comparison decides
// both whether a request is late and whether all numbers taken in a session are late. If they
// differed, a unit could forget a number at the last instant at which it is valid.
func passed(at time.Time, end int64) bool { return at.UnixMilli() > end }

// windowSize is the width of replay windows in request numbers.
const windowSize = 1024

// window records which of the newest 1024 request numbers a unit has seen. Numbers begin at 1.
// Its methods take bounded time for any 64-bit number.
type window struct {
	newest uint64
	seen   [windowSize / 64]uint64
}

// takeNumber reports whether a number is new, and records it as seen. A number before the
// window counts as seen.
func (w *window) takeNumber(number uint64) bool {
	if number > w.newest {
		w.advance(number)
	} else if w.newest-number >= windowSize {
		return false
	}
	word, bit := &w.seen[number/64%(windowSize/64)], uint64(1)<<(number%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

// advance moves the window forward to a number and clears the numbers that enter it. The loop
// counts steps instead of numbers, because a loop over numbers could overflow at 2^64-1.
func (w *window) advance(number uint64) {
	if steps := number - w.newest; steps >= windowSize {
		w.seen = [windowSize / 64]uint64{}
	} else {
		for i := uint64(1); i <= steps; i++ {
			n := w.newest + i
			w.seen[n/64%(windowSize/64)] &^= 1 << (n % 64)
		}
	}
	w.newest = number
}
