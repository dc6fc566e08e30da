// Package trustedclock is the clock of an authority. The host sets the wall clock, so the
// authority accepts it only within limits: never below a floor, and not after a jump against the
// monotonic clock.
package trustedclock

import (
	"fmt"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Source reads both clocks of the machine at one moment: the wall clock, and the monotonic clock
// as the time since a fixed moment.
type Source func() (wall time.Time, elapsed time.Duration)

// System returns the machine's clock.
func System() Source {
	start := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0), now.Sub(start) // Round removes the monotonic reading
	}
}

// Clock is an authority's clock. The times that raise its floor are of events that the authority
// caused or its owners signed: the build, the policy and its adoption, issuances, and the
// vendors' documents that an issuance relied on. The time of a refusal does not raise it, because
// any client can cause one; nor does the time of a proposal, because one owner can. It is safe
// for concurrent use.
type Clock struct {
	read    Source
	wall    time.Time // both readings at the start
	elapsed time.Duration

	mu    sync.Mutex
	floor time.Time // guarded by mu
}

// New returns a clock over a source, without a floor.
func New(read Source) *Clock {
	c := &Clock{read: read}
	c.wall, c.elapsed = read()
	return c
}

// Raise raises the floor: Now returns no time before at.
func (c *Clock) Raise(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.After(c.floor) {
		c.floor = at
	}
}

// CheckSigned refuses, with reason "clock", a signed time more than 2 minutes ahead of the wall
// clock. It ignores the floor: otherwise each document could be 2 minutes ahead of the one before
// it.
func (c *Clock) CheckSigned(signed time.Time) error {
	wall, _ := c.read()
	if ahead := signed.Sub(wall); ahead > wire.MaxClockJump {
		return wire.Refuse(wire.ClockSkew, "authority: wall clock", wall.UTC(), fmt.Sprint("not before ", signed.UTC(), ", when a vendor's document was issued"))
	}
	return nil
}

// Now returns the time. It refuses with reason "clock" while the wall clock is outside the
// limits. It never goes back.
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

// LastNow returns the floor: the newest time that was accepted.
func (c *Clock) LastNow() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.floor
}
