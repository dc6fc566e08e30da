// Package hostclock is the time of a program whose wall clock an untrusted host sets.
//
// A [Clock] reads the wall clock once, at its start, and from then on counts the time that
// passes, suspended time included. It trusts that count. It only compares the wall clock, and
// refuses with the reason "clock" while the two differ by more than 2 minutes ([Clock.CheckedTime]).
package hostclock

import (
	"context"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sys/unix"
)

// [Clock.Watch] gives up after the last of so many refusals in a row, one per interval.
const (
	watchInterval = time.Second
	maxRefusals   = 10
)

// Clock is the wall clock at its start plus the time since. It is safe for concurrent use if
// its reading function is.
type Clock struct {
	read    func() (wall time.Time, elapsed time.Duration)
	wall    time.Time // both readings at the start
	elapsed time.Duration
}

// New starts a clock. read returns the wall clock, and the time since some fixed moment,
// suspended time included.
func New(read func() (wall time.Time, elapsed time.Duration)) *Clock {
	c := &Clock{read: read}
	c.wall, c.elapsed = read()
	return c
}

// System reads the machine's wall clock, and CLOCK_BOOTTIME, which is not set and also counts
// while the machine is suspended.
func System() (wall time.Time, elapsed time.Duration) {
	var since unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &since); err != nil {
		panic("hostclock: reading CLOCK_BOOTTIME: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Now().Round(0), time.Duration(since.Nano()) // Round removes the monotonic reading
}

// Now returns the time of the clock. It never goes back.
func (c *Clock) Now() time.Time {
	_, elapsed := c.read()
	return c.wall.Add(elapsed - c.elapsed)
}

// CheckedTime returns Now, or a refusal with the reason "clock" while the wall clock differs from it
// by more than 2 minutes. Once the wall clock is back, Check accepts again.
func (c *Clock) CheckedTime() (time.Time, error) {
	wall, elapsed := c.read()
	now := c.wall.Add(elapsed - c.elapsed)
	if jump := wall.Sub(now); jump.Abs() > wire.MaxClockJump {
		return time.Time{}, wire.Refuse(wire.ClockSkew, "unit: wall clock against the time since the start", jump, "within "+wire.MaxClockJump.String())
	}
	return now, nil
}

// Watch blocks until ctx is done, and returns nil then, or until Check refused 10 times in a
// row, once a second: the time of the clock cannot be used any more.
func (c *Clock) Watch(ctx context.Context) error {
	ticker := time.NewTicker(watchInterval)
	defer ticker.Stop()
	for refused := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		_, err := c.CheckedTime()
		if refused++; err == nil {
			refused = 0
		} else if refused == maxRefusals {
			return fmt.Errorf("checking the clock %d times in a row: %w", refused, err)
		}
	}
}
