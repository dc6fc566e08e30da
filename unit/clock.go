package unit

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/sys/unix"
)

// A unit whose clock is refused at 10 looks in a row, one a second, ends itself.
const (
	clockEach = time.Second
	clockMost = 10
)

// clock is the unit's time: the wall clock at its start plus what has passed since,
// suspended time included. The host sets the wall clock, so that is read once; from
// then on it is only compared.
type clock struct {
	read    func() (wall time.Time, elapsed time.Duration)
	wall    time.Time // both readings at the start
	elapsed time.Duration
}

func newClock(read func() (time.Time, time.Duration)) *clock {
	c := &clock{read: read}
	c.wall, c.elapsed = read()
	return c
}

// systemClock reads the machine's wall clock, and CLOCK_BOOTTIME, which neither
// steps nor stands still while the machine is suspended.
func systemClock() (wall time.Time, elapsed time.Duration) {
	var since unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &since); err != nil {
		panic("unit: reading CLOCK_BOOTTIME: " + err.Error()) // every Linux since 2.6.39 has it
	}
	return time.Now().Round(0), time.Duration(since.Nano()) // Round takes the monotonic reading off
}

// now is the unit's time. It never goes back.
func (c *clock) now() time.Time {
	_, elapsed := c.read()
	return c.wall.Add(elapsed - c.elapsed)
}

// checked is now, or a refusal with the reason "clock" while the wall clock differs
// from it by more than 2 minutes. What the wall clock showed meanwhile is forgotten
// when it is back.
func (c *clock) checked() (time.Time, error) {
	wall, elapsed := c.read()
	now := c.wall.Add(elapsed - c.elapsed)
	if jump := wall.Sub(now); jump.Abs() > wire.MaxClockJump {
		return time.Time{}, wire.Refuse(wire.ClockSkew, "unit: wall clock against the time since the start", jump, "within "+wire.MaxClockJump.String())
	}
	return now, nil
}

// watch blocks until ctx is done, which is no error, or until the clock was
// refused at 10 looks in a row: then the unit's time is of no use any more.
func (c *clock) watch(ctx context.Context) error {
	ticker := time.NewTicker(clockEach)
	defer ticker.Stop()
	for refused := 0; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		_, err := c.checked()
		if refused++; err == nil {
			refused = 0
		} else if refused == clockMost {
			return fmt.Errorf("looking at the clock %d times in a row: %w", refused, err)
		}
	}
}

// now is the unit's time.
func (u *Unit) now() time.Time { return u.clock.now() }

// watch ends the unit's program when nothing but another start helps, until ctx is
// done.
func (u *Unit) watch(ctx context.Context) {
	for _, faults := range []func(context.Context) error{u.clock.watch, u.cluster.host.Watch} {
		u.cluster.tasks.Go(func() {
			if err := faults(ctx); err != nil {
				u.config.Fatal(fmt.Errorf("unit %s serves nothing any more and ends: %w", u.id, err))
			}
		})
	}
}

// exit is the Fatal of a unit that was given none.
func exit(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
