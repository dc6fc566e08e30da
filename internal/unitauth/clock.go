package unitauth

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// CheckSkew refuses, with "clock", a unit's time that differs by more than 5 minutes from the
// client's time.
func CheckSkew(unit, now time.Time) error {
	if unit.Sub(now).Abs() > wire.MaxClockSkew {
		return wire.Refuse(wire.ClockSkew, "unit: time", unit.UTC().Format(time.RFC3339), "within 5 minutes of this machine's, "+now.UTC().Format(time.RFC3339))
	}
	return nil
}

// TimeBytes encodes a time in Unix milliseconds, 8 bytes.
func TimeBytes(at time.Time) []byte { return wire.Uint64(uint64(at.UnixMilli())) }

// ParseTime parses the time of a unit: Unix milliseconds, 8 bytes. The caller has checked the
// size.
func ParseTime(b []byte) (time.Time, error) {
	ms := binary.BigEndian.Uint64(b)
	if ms > math.MaxInt64 {
		return time.Time{}, wire.Refuse(wire.Malformed, "unit: time in milliseconds", ms, "below 2^63")
	}
	return time.UnixMilli(int64(ms)), nil
}
