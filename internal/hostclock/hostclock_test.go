package hostclock

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// bubbleClock is a machine's clock in a bubble of [synctest].
func bubbleClock() (time.Time, time.Duration) {
	return time.Now(), time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC))
}

// machine is a clock that a test sets.
type machine struct {
	wall    time.Time
	elapsed time.Duration
}

func (m *machine) read() (time.Time, time.Duration) { return m.wall, m.elapsed }

// passes lets time pass, asleep or awake.
func (m *machine) passes(d time.Duration) { m.wall, m.elapsed = m.wall.Add(d), m.elapsed+d }

// TestUnitTime moves a host's clock: the unit's time does not go with it, neither
// back nor, once the clock is right again, for ever ahead.
func TestUnitTime(t *testing.T) {
	start := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	for _, row := range []struct {
		name string
		jump time.Duration
		want wire.Reason
	}{
		{"not at all", 0, ""},
		{"a little on", wire.MaxClockJump, ""},
		{"a little back", -wire.MaxClockJump, ""},
		{"on", wire.MaxClockJump + 1, wire.ClockSkew},
		{"back", -wire.MaxClockJump - 1, wire.ClockSkew},
		{"an hour on", time.Hour, wire.ClockSkew},
		{"a day on", 25 * time.Hour, wire.ClockSkew},
		{"to 2038", time.Date(2038, 1, 19, 3, 14, 8, 0, time.UTC).Sub(start), wire.ClockSkew},
		{"to 1970", -start.Sub(time.Unix(0, 0)), wire.ClockSkew},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := &machine{wall: start, elapsed: 5 * time.Hour}
			c := New(m.read)
			m.passes(time.Minute)
			m.wall = m.wall.Add(row.jump)
			if _, err := c.CheckedTime(); (err == nil) != (row.want == "") || err != nil && wire.ReasonOf(err) != row.want {
				t.Errorf("got %v, want %q", err, row.want)
			}
			if got, want := c.Now(), start.Add(time.Minute); !got.Equal(want) {
				t.Errorf("got %v, want %v", got, want)
			}
			m.passes(time.Second)
			m.wall = m.wall.Add(-row.jump)
			if got, err := c.CheckedTime(); err != nil || !got.Equal(start.Add(61*time.Second)) {
				t.Errorf("when it is right again: got %v, %v, want %v", got, err, start.Add(61*time.Second))
			}
		})
	}
}

// TestSystemClock: the machine's own clocks agree, and time passes.
func TestSystemClock(t *testing.T) {
	c := New(System)
	first, err := c.CheckedTime()
	testworld.NoError(t, err)
	if off := time.Since(first); off.Abs() > time.Minute {
		t.Errorf("the unit's time is %v off", off)
	}
	second, err := c.CheckedTime()
	testworld.NoError(t, err)
	if second.Before(first) {
		t.Errorf("time went from %v back to %v", first, second)
	}
}

// TestClockEnds: a unit whose clock is refused ends after 10 seconds, not for one
// that was wrong for a moment, nor for a machine that slept.
func TestClockEnds(t *testing.T) {
	for _, row := range []struct {
		name        string
		off, asleep time.Duration // 5 seconds after the start
		back        time.Duration // after that
		ends        time.Duration // 0: never
	}{
		{name: "right"},
		{name: "wrong", off: 3 * time.Minute, ends: 15 * time.Second},
		{name: "back in time", off: -time.Hour, ends: 15 * time.Second},
		{name: "wrong for 9 seconds", off: time.Hour, back: 9 * time.Second},
		{name: "asleep for a night", asleep: 8 * time.Hour},
	} {
		t.Run(row.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				var off, asleep atomic.Int64 // nanoseconds
				c := New(func() (time.Time, time.Duration) {
					wall, elapsed := bubbleClock()
					slept := time.Duration(asleep.Load())
					return wall.Add(time.Duration(off.Load()) + slept), elapsed + slept
				})
				ended := make(chan error, 1)
				begin := time.Now()
				go func() { ended <- c.Watch(t.Context()) }()
				time.Sleep(5*time.Second + time.Millisecond)
				off.Store(int64(row.off))
				asleep.Store(int64(row.asleep))
				if row.back > 0 {
					time.Sleep(row.back)
					off.Store(0)
				}
				select {
				case err := <-ended:
					if took := time.Since(begin).Round(time.Second); took != row.ends || wire.ReasonOf(err) != wire.ClockSkew {
						t.Errorf("ended after %v: %v, want %v", took, err, row.ends)
					}
				case <-time.After(time.Minute):
					if row.ends > 0 {
						t.Errorf("did not end, want it after %v", row.ends)
					}
				}
			})
		})
	}
}
