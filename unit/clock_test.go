package unit

import (
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/hostclock"
)

// bubbleClock is a machine's clock in a bubble of [synctest].
func bubbleClock() (time.Time, time.Duration) {
	return time.Now(), time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
}

// machineAhead returns a machine whose wall clock was d ahead when it started.
func machineAhead(d time.Duration) func() (time.Time, time.Duration) {
	return func() (time.Time, time.Duration) {
		wall, elapsed := hostclock.System()
		return wall.Add(d), elapsed
	}
}

// skipping returns a machine that has slept for the given time in total.
func skipping(asleep *atomic.Int64) func() (time.Time, time.Duration) {
	return func() (time.Time, time.Duration) {
		wall, elapsed := hostclock.System()
		d := time.Duration(asleep.Load())
		return wall.Add(d), elapsed + d
	}
}
