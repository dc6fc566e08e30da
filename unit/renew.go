package unit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// attemptTime is the longest that one attempt at one authority takes.
const attemptTime = 5 * time.Second

// authorityBackoff is the wait while no authority issues a certificate. One that comes back is
// asked within attemptTime and Most.
var authorityBackoff = retry.Backoff{First: 50 * time.Millisecond, Max: 5 * time.Second}

// longestPause is how long the clock is not looked at: timers stop while
// a machine sleeps, but certificates expire.
const longestPause = time.Minute

// renew replaces the certificate when it is time, until ctx is done. The current
// one is kept while no authority issues a newer one.
func (u *Unit) renew(ctx context.Context) {
	defer close(u.done)
	for u.awaitRenewal(ctx) == nil {
		// It ends without a certificate only with ctx, as the loop sees.
		_ = u.obtain(ctx, func(error) bool { return false })
	}
}

// awaitRenewal blocks until the current certificate is to be renewed, at a random
// point of the time for it, or ahead of that when a ring key is missed, or ctx is
// done. However clocks differ it else lets half of that time pass, so that a unit
// never asks in a tight loop.
//
// A step that concerns the unit makes it renew at a random point of the spread that the
// authority proved with it.
func (u *Unit) awaitRenewal(ctx context.Context) error {
	e := u.enrolled.Load()
	spread := e.renewBefore.Sub(e.renewAfter)
	if soon, err := u.awaitStep(ctx, spread/2); soon || err != nil {
		return err
	}
	due := e.renewAfter.Add(rand.N(spread + 1))
	for wait := due.Sub(u.currentTime()); wait > 0; wait = due.Sub(u.currentTime()) {
		if soon, err := u.awaitStep(ctx, min(wait, longestPause)); soon || err != nil {
			return err
		}
	}
	return nil
}

// obtain tries all authorities until one issues a certificate, with back-off and
// one warning for each step of it. It ends early with an error for which ends
// is true, or when ctx is done, with that of the last attempt that ctx did not cut
// off.
func (u *Unit) obtain(ctx context.Context, ends func(error) bool) error {
	var firstErr error
	for failures := 1; ; failures++ {
		moved := u.steps.nextStep()
		err := u.Attempt(ctx)
		if err == nil || ends(err) {
			return err
		}
		if firstErr == nil || ctx.Err() == nil {
			firstErr = err
		}
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), firstErr)
		}
		wait := authorityBackoff.Wait(failures)
		u.config.Log.Warn("no certificate yet", "unit", u.id, "task", u.config.Task, "group", u.config.Group, "role", u.config.Role, "reason", wire.ReasonOf(err), "cause", err, "retry_in", wait)
		switch stepped, err := pauseUntil(ctx, wait, moved); {
		case err != nil:
			return errors.Join(context.Cause(ctx), firstErr)
		case stepped:
			failures = 0 // what was refused may be approved now
		}
	}
}

// Attempt asks each authority once, beginning with the one that issued the last
// certificate: of several, one issues ring keys. When none issues a certificate the
// error is that of the first final refusal, or of the first address.
func (u *Unit) Attempt(ctx context.Context) error {
	var firstErr error
	for i, p := range u.peers {
		err := u.attemptAt(ctx, p)
		if err == nil {
			u.peers[0], u.peers[i] = p, u.peers[0]
			return nil
		}
		u.counters.failed(err)
		if firstErr == nil || isFinal(err) && !isFinal(firstErr) {
			firstErr = fmt.Errorf("authority %s: %w", p.address, err)
		}
	}
	return firstErr
}

func (u *Unit) attemptAt(ctx context.Context, p *peer) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	e, err := u.enrol(ctx, p)
	if err != nil {
		return err
	}
	if err := u.applyCredentials(e); err != nil {
		u.config.Log.Warn("channel stays with the former certificate", "unit", u.id, "reason", wire.ReasonOf(err), "cause", err)
	}
	if old := u.enrolled.Swap(e); old != nil {
		close(old.replaced)
	}
	u.counters.renewals.Add(1)
	return nil
}

// isFinal reports whether trying again cannot help. An error that is no refusal
// is the network's or a fault of the authority.
func isFinal(err error) bool {
	switch wire.ReasonOf(err) {
	case wire.NoQuorum, wire.Withdrawn, wire.NoPlace: // parties may still approve, a place becomes free
		return false
	case wire.Behind, wire.RingElsewhere, wire.GroupElsewhere, wire.Unavailable, wire.TooMany, wire.Overload, wire.StoreFailed, wire.Internal:
		return false
	}
	return true
}

// pauseUntil is [retry.Sleep] that ends early with a channel that is closed, and reports
// whether it was.
func pauseUntil(ctx context.Context, d time.Duration, moved <-chan struct{}) (early bool, err error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-moved:
		early = true
	case <-timer.C:
	}
	return early, ctx.Err()
}
