package channel

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// MaxAhead is how far a request's not after may be ahead of the unit's time. So
// what was touched may yield 2 minutes after it was used last.
const MaxAhead = 2 * time.Minute

// passed reports whether an end, in Unix milliseconds, is over. This one
// comparison says of a request that it is late, and of an entry that all numbers
// taken in it are: were there two, a number could be forgotten in the last
// instant in which it is taken.
func passed(at time.Time, end int64) bool { return at.UnixMilli() > end }

// CheckSkew refuses, with "clock", a unit's time that is more than 5 minutes from the
// client's.
func CheckSkew(unit, now time.Time) error {
	if unit.Sub(now).Abs() > wire.MaxClockSkew {
		return wire.Refuse(wire.ClockSkew, "unit: time", unit.UTC().Format(time.RFC3339), "within 5 minutes of this machine's, "+now.UTC().Format(time.RFC3339))
	}
	return nil
}

// timeBytes is a time in Unix milliseconds, 8 bytes.
func timeBytes(at time.Time) []byte { return wire.Uint64(uint64(at.UnixMilli())) }

// parseTime reads the time of a unit, Unix milliseconds in 8 bytes.
func parseTime(b []byte) (time.Time, error) {
	ms := binary.BigEndian.Uint64(b)
	if ms > math.MaxInt64 {
		return time.Time{}, wire.Refuse(wire.Malformed, "unit: time in milliseconds", ms, "below 2^63")
	}
	return time.UnixMilli(int64(ms)), nil
}
