// Package trustedclock is the time that an authority works by. The host sets the wall
// clock, so it is believed only within limits: never below a floor, and not after a
// jump against the monotonic clock.
package trustedclock

import (
	"fmt"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Source reads both clocks of the machine at one moment: the wall clock, and the
// time since some fixed moment by the monotonic clock.
type Source func() (wall time.Time, elapsed time.Duration)

// System returns the machine's clock.
func System() Source {
	start := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0), now.Sub(start) // Round takes the monotonic reading off
	}
}

// Clock is an authority's time. Its floors are the times of what the authority made
// or its owners signed: the build, policy and its adoption, and what was issued; and
// of vendors' documents that an issuance was decided by. The time of a refusal is no
// floor, since any stranger causes one; nor is that of a proposal, which one owner
// causes. It is safe for concurrent use.
type Clock struct {
	read    Source
	wall    time.Time // both readings at the start
	elapsed time.Duration

	mu    sync.Mutex
	floor time.Time // guarded by mu
}

// New returns a clock over a source, whose floor is not set.
func New(read Source) *Clock {
	c := &Clock{read: read}
	c.wall, c.elapsed = read()
	return c
}

// Raise sets the floor: the present is not before at.
func (c *Clock) Raise(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.After(c.floor) {
		c.floor = at
	}
}

// CheckSigned refuses, with reason "clock", a time that something was signed at more than 2
// minutes ahead of the wall clock. The floor does not count here: else each document could
// be ahead of the one before.
func (c *Clock) CheckSigned(signed time.Time) error {
	wall, _ := c.read()
	if ahead := signed.Sub(wall); ahead > wire.MaxClockJump {
		return wire.Refuse(wire.ClockSkew, "authority: wall clock", wall.UTC(), fmt.Sprint("not before ", signed.UTC(), ", when a vendor's document was issued"))
	}
	return nil
}

// Now returns the time, or a refusal with reason "clock" while the wall clock cannot
// be believed. It never goes back.
func (c *Clock) Now() (time.Time, error) {
	wall, elapsed := c.read()
	if jump := wall.Sub(c.wall) - (elapsed - c.elapsed); jump.Abs() > wire.MaxClockJump {
		return time.Time{}, wire.Refuse(wire.ClockSkew, "authority: wall clock against monotonic clock", jump, wire.MaxClockJump)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if behind := c.floor.Sub(wall); behind > wire.MaxClockJump {
		return time.Time{}, wire.Refuse(wire.ClockSkew, "authority: wall clock", wall.UTC(), fmt.Sprint("not before ", c.floor.UTC(), ", when something was issued, adopted or built"))
	}
	if wall.After(c.floor) {
		c.floor = wall
	}
	return c.floor, nil
}

// SinceStart returns the time since the clock was made, by the monotonic clock.
func (c *Clock) SinceStart() time.Duration {
	_, elapsed := c.read()
	return elapsed - c.elapsed
}

// LastNow returns the newest time that was believed.
func (c *Clock) LastNow() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor
}
