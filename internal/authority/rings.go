package authority

import (
	"context"
	"errors"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authority/ringkeys"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// addRings adds the ring keys to the report. When the current key ends before the certificate
// does, the unit must renew before the key ends. The window is like a certificate's: it begins a
// third of the key's lifetime before its end, and is a twelfth of the lifetime long.
func (a *Authority) addRings(e *enrolment) error {
	keys, end, err := a.rings.AddKeys(ringkeys.Request{Approved: e.snap.approved, Grant: e.grant, At: e.at})
	if err != nil {
		return err
	}
	e.report.Rings = keys
	lifetime := identity.RingLifetime(e.grant.LeafLifetime())
	due := end.Add(-lifetime / 3)
	if latest := due.Add(lifetime / 12); e.report.RenewBefore.After(latest) {
		e.report.RenewBefore = latest
	}
	if e.report.RenewAfter.After(due) {
		e.report.RenewAfter = due
	}
	return nil
}

// keepRings renews the lease of the rings, rolls keys that are not in use, and drops keys that
// the policy does not name. An authority that may not issue releases the lease to another
// authority.
func (a *Authority) keepRings(ctx context.Context) {
	snap := a.inForce()
	now, err := a.clock.Now()
	if err != nil || snap.unnamed != nil || a.history.Behind() != nil {
		err = a.rings.ReleaseLease(ctx)
	} else if err = a.rings.EnsureLease(ctx); err == nil {
		a.rings.Apply(snap.approved, now)
	}
	if err != nil && !errors.Is(err, wire.RingElsewhere) && ctx.Err() == nil {
		a.log.Warn("renewing the ring lease", "error", err)
	}
}

// cutRings draws unscheduled keys where a new policy cuts off units that have the current and
// next keys.
func (a *Authority) cutRings(p policy.Approved) {
	now, err := a.clock.Now()
	if err != nil {
		now = a.clock.LastNow()
	}
	a.rings.Apply(p, now)
}
