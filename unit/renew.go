package unit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Steps of back-off, and the longest time one attempt at one authority may
// take. An authority that comes back is noticed within attemptTime + lastStep.
const (
	firstStep   = 50 * time.Millisecond
	lastStep    = 5 * time.Second
	attemptTime = 5 * time.Second
)

// longestPause is how long the clock is not looked at: timers stand still while
// a machine sleeps, certificates do not.
const longestPause = time.Minute

// renew replaces the certificate when it is time, until ctx is done. The one
// held is kept while no authority gives a newer one.
func (u *Unit) renew(ctx context.Context) {
	defer close(u.done)
	for u.awaitRenewal(ctx) == nil {
		// It ends without a certificate only with ctx, as the loop sees.
		_ = u.obtain(ctx, func(error) bool { return false })
	}
}

// awaitRenewal blocks until the certificate held is to be renewed, at a random
// point of the time for it, or ahead of that when a ring key is missed, or ctx is
// done. However clocks differ it else lets half of that time pass, so that a unit
// never asks in a tight loop.
func (u *Unit) awaitRenewal(ctx context.Context) error {
	e := u.held.Load()
	spread := e.renewBefore.Sub(e.renewAfter)
	if soon, err := u.await(ctx, spread/2); soon || err != nil {
		return err
	}
	due := e.renewAfter.Add(rand.N(spread + 1))
	for wait := due.Sub(u.config.Clock()); wait > 0; wait = due.Sub(u.config.Clock()) {
		if soon, err := u.await(ctx, min(wait, longestPause)); soon || err != nil {
			return err
		}
	}
	return nil
}

// obtain tries all authorities until one gives a certificate, with back-off and
// one warning for each step of it. It ends early with an error for which ends
// is true, or when ctx is done, with that of the last attempt that ctx did not cut
// off.
func (u *Unit) obtain(ctx context.Context, ends func(error) bool) error {
	var told error
	for step := firstStep; ; step = min(2*step, lastStep) {
		err := u.attempt(ctx)
		if err == nil || ends(err) {
			return err
		}
		if told == nil || ctx.Err() == nil {
			told = err
		}
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), told)
		}
		wait := step/2 + rand.N(step/2)
		u.config.Log.Warn("no certificate yet", "unit", u.id, "task", u.config.Task, "group", u.config.Group, "role", u.config.Role, "reason", wire.ReasonOf(err), "cause", err, "retry_in", wait)
		if pause(ctx, wait) != nil {
			return errors.Join(context.Cause(ctx), told)
		}
	}
}

// attempt asks each authority once, beginning with the one that gave the last
// certificate: of several, one gives ring keys. When none gives a certificate the
// error is that of the first final refusal, or of the first address.
func (u *Unit) attempt(ctx context.Context) error {
	var told error
	for i, p := range u.peers {
		err := u.attemptAt(ctx, p)
		if err == nil {
			u.peers[0], u.peers[i] = p, u.peers[0]
			return nil
		}
		u.counters.failed(err)
		if told == nil || final(err) && !final(told) {
			told = fmt.Errorf("authority %s: %w", p.address, err)
		}
	}
	return told
}

func (u *Unit) attemptAt(ctx context.Context, p *peer) error {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	e, err := u.enrol(ctx, p)
	if err != nil {
		return err
	}
	if err := u.stand(e); err != nil {
		u.config.Log.Warn("channel stays with the former certificate", "unit", u.id, "reason", wire.ReasonOf(err), "cause", err)
	}
	if old := u.held.Swap(e); old != nil {
		close(old.replaced)
	}
	u.counters.renewals.Add(1)
	return nil
}

// final reports whether trying again cannot help. An error that is no refusal
// is the network's or a fault of the authority.
func final(err error) bool {
	switch wire.ReasonOf(err) {
	case wire.NoQuorum: // parties may still approve
		return false
	case wire.Behind, wire.RingElsewhere, wire.Unavailable, wire.TooMany, wire.StoreFailed, wire.Internal:
		return false
	}
	return true
}

// pause blocks for d, or until ctx is done.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return ctx.Err()
	}
}
