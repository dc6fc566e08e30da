package authority

import (
	"fmt"
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
// believed only within limits: never below a floor, and not after a jump against the
// monotonic clock. Floors are the times of what the authority itself made or its owners
// signed: the build, policy and its adoption, and what was issued; and of what vendors signed
// and an issuance was decided by. The time of a refusal is none, since any stranger causes one;
// nor is that of a proposal, which one owner causes.
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

// believable refuses, with reason "clock", a time that something was signed at more than 2
// minutes ahead of the wall clock. The floor does not count here: else each document could
// be ahead of the one before.
func (g *guard) believable(signed time.Time) error {
	wall, _ := g.read()
	if ahead := signed.Sub(wall); ahead > wire.MaxClockJump {
		return wire.Refuse(wire.ClockSkew, "authority: wall clock", wall.UTC(), fmt.Sprint("not before ", signed.UTC(), ", when a vendor's document was issued"))
	}
	return nil
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
		return time.Time{}, wire.Refuse(wire.ClockSkew, "authority: wall clock", wall.UTC(), fmt.Sprint("not before ", g.floor.UTC(), ", when something was issued, adopted or built"))
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
