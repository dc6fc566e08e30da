package testworld

import (
	"sync"
	"time"
)

// Noon is the time at which the clocks of most tests start, and the date of their
// certificates.
var Noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// Clock is both clocks of a machine: the wall clock, and the elapsed time, which no
// operator can set. A test sets both.
type Clock struct {
	mu      sync.Mutex // guards the fields below
	wall    time.Time
	elapsed time.Duration
}

// NewClock starts a clock.
func NewClock(at time.Time) *Clock { return &Clock{wall: at} }

// Read returns the reading of both clocks.
func (c *Clock) Read() (wall time.Time, elapsed time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wall, c.elapsed
}

// Now returns the reading of the wall clock.
func (c *Clock) Now() time.Time {
	wall, _ := c.Read()
	return wall
}

// Advance advances both clocks and returns the new wall time.
func (c *Clock) Advance(d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall, c.elapsed = c.wall.Add(d), c.elapsed+d
	return c.wall
}

// JumpWall moves only the wall clock, as an operator does.
func (c *Clock) JumpWall(d time.Duration) { c.SetWall(c.Now().Add(d)) }

// SetWall sets only the wall clock.
func (c *Clock) SetWall(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wall = at
}
