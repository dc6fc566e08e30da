package authority

import (
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Clock reads both clocks of the machine at one moment: the wall clock, and the
// time since some fixed moment by the monotonic clock.
type Clock func() (wall time.Time, elapsed time.Duration)

// SystemClock is the machine's clock.
func SystemClock() Clock {
	start := time.Now()
	return func() (time.Time, time.Duration) {
		now := time.Now()
		return now.Round(0), now.Sub(start) // Round takes the monotonic reading off
	}
}

// guard is the authority's time. The host sets the wall clock, so it is
// believed only within limits: never below a floor that signed or recorded
// times set, and not after a jump against the monotonic clock.
type guard struct {
	read    Clock
	wall    time.Time // both readings at the start
	elapsed time.Duration

	mu    sync.Mutex
	floor time.Time // guarded by mu
}

func newGuard(read Clock) *guard {
	g := &guard{read: read}
	g.wall, g.elapsed = read()
	return g
}

// raise says that the present is not before at.
func (g *guard) raise(at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if at.After(g.floor) {
		g.floor = at
	}
}

// now is the time, or a refusal with reason "clock" while the wall clock cannot
// be believed. It never goes back.
func (g *guard) now() (time.Time, error) {
	wall, elapsed := g.read()
	if jump := wall.Sub(g.wall) - (elapsed - g.elapsed); jump.Abs() > wire.MaxClockJump {
		return time.Time{}, wire.Refuse(wire.ClockSkew, "authority: wall clock against monotonic clock", jump, wire.MaxClockJump)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if behind := g.floor.Sub(wall); behind > wire.MaxClockJump {
		return time.Time{}, wire.Refuse(wire.ClockSkew, "authority: wall clock", wall, g.floor)
	}
	if wall.After(g.floor) {
		g.floor = wall
	}
	return g.floor, nil
}

// sinceStart is the time since the authority began, by the monotonic clock.
func (g *guard) sinceStart() time.Duration {
	_, elapsed := g.read()
	return elapsed - g.elapsed
}

// last is the newest time that was believed.
func (g *guard) last() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.floor
}
