// Package retry computes how long a caller waits before it tries again.
//
// It trusts nothing and refuses nothing. The zero [Backoff] never waits.
package retry

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff is a wait that doubles with each failure in a row.
type Backoff struct {
	First time.Duration // after the first failure
	Max   time.Duration // after many
}

// Longest returns the wait after so many failures in a row, at least 1: First, doubled for
// each further failure, and at most Max.
func (b Backoff) Longest(failures int) time.Duration {
	doublings := min(max(failures, 1)-1, 62)
	if b.First > b.Max>>doublings {
		return b.Max
	}
	return b.First << doublings
}

// Spread returns a part of Longest: half of it, and of the other half the share jitter, in
// [0, 1), which callers draw, so that they do not all come back at once.
func (b Backoff) Spread(failures int, jitter float64) time.Duration {
	half := b.Longest(failures) / 2
	return half + time.Duration(jitter*float64(half))
}

// Wait is [Backoff.Spread] with a jitter that it draws.
func (b Backoff) Wait(failures int) time.Duration { return b.Spread(failures, rand.Float64()) }

// Sleep blocks for d, or until ctx is done, and returns the error of ctx.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}
