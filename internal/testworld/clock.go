package testworld

import (
	"sync"
	"time"
)

// Noon is when the clocks of most tests begin, and the date of their certificates.
var Noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// Clock is both clocks of a machine, the wall clock and the one that no operator sets.
// A test moves them.
type Clock struct {
	mu      sync.Mutex // guards all below
	wall    time.Time
	elapsed time.Duration
}

// NewClock starts a clock.
func NewClock(at time.Time) *Clock { return &Clock{wall: at} }

// Read is the reading of both.
func (c *Clock) Read() (wall time.Time, elapsed time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall, c.elapsed
}

// Now is the reading of the wall clock.
func (c *Clock) Now() time.Time {
	wall, _ := c.Read()
	return wall
}

// Advance lets time go by and returns the time after it.
func (c *Clock) Advance(d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.elapsed = c.wall.Add(d), c.elapsed+d
	return c.wall
}

// JumpWall moves the wall clock alone, as an operator does.
func (c *Clock) JumpWall(d time.Duration) { c.SetWall(c.Now().Add(d)) }

// SetWall moves the wall clock alone to a time.
func (c *Clock) SetWall(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = at
}
