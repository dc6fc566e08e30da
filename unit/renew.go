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

// attemptTime limits one attempt at one authority.
const attemptTime = 5 * time.Second

// authorityBackoff is the wait between attempts while no authority issues a certificate. An
// authority that is available again receives a request within attemptTime and Max.
var authorityBackoff = retry.Backoff{First: 50 * time.Millisecond, Max: 5 * time.Second}

// longestPause is the maximum time between two readings of the clock. Timers stop while a
// machine sleeps, but certificates still expire.
const longestPause = time.Minute

// renew replaces the certificate at the times of renewal, until ctx is done. The current
// certificate stays in use while no authority issues a newer one.
func (u *Unit) renew(ctx context.Context) {
	defer close(u.done)
	for u.awaitRenewal(ctx) == nil {
		// obtain fails only if ctx is done, which the loop checks.
		_ = u.obtain(ctx, func(error) bool { return false })
	}
}

// awaitRenewal blocks until the unit should renew the current certificate: at a random time in
// the renewal window, or earlier if an early renewal is requested. It returns an error if ctx is
// done. Otherwise it waits at least half the length of the window, even if clocks differ, so
// that a unit never sends requests in a tight loop.
//
// After a step that concerns the unit, the unit renews at a random time within the spread that
// the authority signed with the step.
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

// obtain tries all authorities until one issues a certificate, with back-off and a warning after
// each failed attempt. It returns early on an error for which ends is true. When ctx is done, it
// returns the cause of ctx and the error of the last attempt that ctx did not interrupt.
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
			failures = 0 // the new policy may approve a request that was refused before
		}
	}
}

// Attempt requests a certificate from each authority once, until one issues it. It begins with
// the authority that issued the last certificate, since only one of several issues ring keys. If
// none issues a certificate, the error is that of the first final refusal, or else of the first
// address.
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

// isFinal reports whether a retry cannot succeed. An error that is not a refusal comes from the
// network or from a fault of the authority, and is not final.
func isFinal(err error) bool {
	switch wire.ReasonOf(err) {
	case wire.NoQuorum, wire.Withdrawn, wire.NoPlace: // parties may still approve, or a place may become free
		return false
	case wire.Behind, wire.RingElsewhere, wire.GroupElsewhere, wire.Unavailable, wire.TooMany, wire.Overload, wire.StoreFailed, wire.Internal:
		return false
	}
	return true
}

// pauseUntil is [retry.Sleep] that ends early when moved is closed, and reports whether it did.
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
