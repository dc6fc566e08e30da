package channel

import "time"

// MaxAhead is how far a request's not after may be ahead of the unit's time. So a session
// may yield 2 minutes after its last use.
const MaxAhead = 2 * time.Minute

// passed reports whether an end, in Unix milliseconds, is over. The same comparison
// decides that a request is late, and that all numbers taken in an entry are late: with
// two comparisons, a number could be forgotten in the last instant in which it is valid.
func passed(at time.Time, end int64) bool { return at.UnixMilli() > end }

// windowSize is the width of replay windows in request numbers.
const windowSize = 1024

// window remembers which of the newest 1024 request numbers a unit has seen.
// Numbers begin at 1. Any 64-bit number takes bounded time.
type window struct {
	newest uint64
	seen   [windowSize / 64]uint64
}

// takeNumber reports whether a number is new, and remembers it. A number older than the
// window is not new.
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

// advance moves the window up to a number and forgets what falls out of it. The
// steps are counted, because the numbers themselves may end at 2^64-1.
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
