package authority

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// rings are the ring keys of all identities. They are random and in this memory
// only: an authority that starts again, or takes the lease over, draws others, and
// the root secret tells nothing about them. The zero rings are none.
type rings struct {
	mu   sync.Mutex
	held map[attest.Digest]*ring // guarded by mu, by identity id
}

// ring is what the units of one identity seal sessions with.
type ring struct {
	identity       attest.Digest
	task, release  string        // outside groups
	group          attest.Digest // the group's identity; identity is then that, or of one role
	role           string        // that role
	head           attest.Digest // of the newest policy that it was held to
	strict, follow identity.RingKeys
}

// addRings adds the ring keys to the report: those of the unit's own identity,
// and of the release that its release continues the follow keys. Nobody is given
// a successor's.
func (a *Authority) addRings(e *enrolment) error {
	a.rings.mu.Lock()
	defer a.rings.mu.Unlock()
	if e.grant.GroupState != nil {
		a.rings.addGroup(e)
		return nil
	}
	own, err := a.rings.of(e, e.grant.Release.Name)
	if err != nil {
		return err
	}
	e.report.Rings = api.Rings{Strict: exposed(own.strict), Follow: exposed(own.follow)}
	e.renewWithin(own.strict.Current.End())
	if e.grant.Release.Continues == "" {
		return nil
	}
	before, err := a.rings.of(e, e.grant.Release.Continues)
	if err != nil {
		return err
	}
	e.report.Rings.Inherited = &api.InheritedRing{Identity: before.identity, RingKeys: exposed(before.follow)}
	return nil
}

// renewWithin lets the unit renew while the current key is good, where its
// certificate lives longer than that: as with a certificate, from a third of the
// life before the end on, over a twelfth.
func (e *enrolment) renewWithin(end time.Time) {
	life := identity.RingLifetime(e.grant.LeafLifetime())
	due := end.Add(-life / 3)
	if latest := due.Add(life / 12); e.report.RenewBefore.After(latest) {
		e.report.RenewBefore = latest
	}
	if e.report.RenewAfter.After(due) {
		e.report.RenewAfter = due
	}
}

// keepRings keeps the lease of the rings, and rolls and drops keys that nobody
// asks for. Where nothing may be issued, the lease is left to another.
func (a *Authority) keepRings(ctx context.Context) {
	snap := a.inForce()
	now, err := a.clock.Now()
	if err != nil || snap.unnamed != nil || a.history.Behind() != nil {
		err = a.yieldRings(ctx)
	} else if err = a.holdRings(ctx); err == nil {
		a.rings.keep(snap.approved, now)
	}
	if err != nil && !errors.Is(err, wire.RingElsewhere) && ctx.Err() == nil {
		a.log.Warn("keeping the ring lease", "error", err)
	}
}

// cutRings draws unscheduled keys where a new policy cuts off units that hold those
// there are, current and next.
func (a *Authority) cutRings(p policy.Approved) {
	now, err := a.clock.Now()
	if err != nil {
		now = a.clock.Last()
	}
	a.rings.keep(p, now)
}

// holdTo draws keys anew, without previous ones, that a unit holds which policy has cut
// off since the keys were held to it: nothing is sealed or opened any more with those
// there were. An older policy than the one that counts changes nothing.
func (r *ring) holdTo(p policy.Approved, now time.Time, life time.Duration) {
	if r.head.IsZero() {
		r.head = p.Head()
	}
	before, known := p.AtHead(r.head)
	if !known || r.head == p.Head() {
		return
	}
	holders := identity.RingHolders{Identity: r.identity}
	if !r.group.IsZero() {
		holders = identity.RingHolders{Identity: r.group, Role: r.role}
	}
	left := r.left(before, p)
	if left || identity.RingCutSince(p, holders, r.head) {
		r.strict = replace(r.strict, identity.NewRingKeys(now, life))
	}
	holders.Follow = true
	if left || identity.RingCutSince(p, holders, r.head) {
		r.follow = replace(r.follow, identity.NewRingKeys(now, life))
	}
	r.head = p.Head()
}

// left reports whether the group of a ring has another roster than before, which
// leaves out a member whose units hold the ring.
func (r *ring) left(before, now policy.Approved) bool {
	if r.group.IsZero() {
		return false
	}
	p := now.GroupByID(r.group)
	newest, old := now.GroupByName(p.Group.Name), before.GroupByName(p.Group.Name)
	return (old == nil || old.ID() != newest.ID()) && !newest.Keeps(p)
}

// of is the ring of a release of the enrolment's task, at the enrolment's time.
// The caller holds the mutex.
func (r *rings) of(e *enrolment, release string) (*ring, error) {
	id, err := identity.ReleaseID(e.snap.approved, e.grant.Task.Name, release)
	if err != nil {
		return nil, err
	}
	return r.hold(ring{identity: id, task: e.grant.Task.Name, release: release}, e), nil
}

// hold is the ring that is held, or the one given from now on, rolled. The
// caller holds the mutex.
func (r *rings) hold(is ring, e *enrolment) *ring {
	if r.held == nil {
		r.held = make(map[attest.Digest]*ring)
	}
	if r.held[is.identity] == nil {
		r.held[is.identity] = &is
	}
	ring, life := r.held[is.identity], identity.RingLifetime(e.grant.LeafLifetime())
	ring.holdTo(e.snap.approved, e.at, life)
	ring.roll(e.at, life)
	return ring
}

// addGroup adds the keys of the unit's role, and those of the whole group. The
// caller holds the mutex.
func (r *rings) addGroup(e *enrolment) {
	id := e.grant.GroupState.ID()
	role := r.hold(ring{identity: wire.RoleID(id, e.grant.Role), group: id, role: e.grant.Role}, e)
	whole := r.hold(ring{identity: id, group: id}, e)
	e.report.Rings = api.Rings{Strict: exposed(role.strict), Follow: exposed(whole.follow)}
	e.renewWithin(role.strict.Current.End())
}

// life is that of the certificates of a ring's units, and whether the policy
// names them.
func (r *ring) life(p policy.Approved) (time.Duration, bool) {
	if !r.group.IsZero() {
		pact := p.GroupByID(r.group)
		if pact == nil {
			return 0, false
		}
		return pact.Group.Lifetime, true
	}
	id, err := identity.ReleaseID(p, r.task, r.release)
	if err != nil || id != r.identity {
		return 0, false
	}
	return p.Document().Tasks[r.task].Lifetime, true
}

// keep holds the rings of identities that policy names to it and rolls them, and
// drops each other ring.
func (r *rings) keep(p policy.Approved, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, ring := range r.held {
		life, named := ring.life(p)
		if !named {
			ring.drop()
			delete(r.held, id)
			continue
		}
		ring.holdTo(p, now, identity.RingLifetime(life))
		ring.roll(now, identity.RingLifetime(life))
	}
}

// clear drops all rings.
func (r *rings) clear() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ring := range r.held {
		ring.drop()
	}
	clear(r.held)
}

func (r *ring) roll(now time.Time, life time.Duration) {
	r.strict, r.follow = rolled(r.strict, now, life), rolled(r.follow, now, life)
}

func (r *ring) drop() {
	replace(r.strict, identity.RingKeys{})
	replace(r.follow, identity.RingKeys{})
}

// rolled is what keys are at a time: rolled whenever the current one had a life
// left, so that its end stays as units know it, and drawn afresh when all have
// ended. It erases what it drops.
func rolled(keys identity.RingKeys, now time.Time, life time.Duration) identity.RingKeys {
	if keys.Current == nil || !now.Before(keys.Next.End()) {
		return replace(keys, identity.NewRingKeys(now, life))
	}
	for due := keys.Current.End().Add(-life); !now.Before(due); due = due.Add(life) {
		keys = replace(keys, keys.Rotate(due, life))
	}
	return replace(keys, keys.WithoutExpired(now))
}

// replace erases the keys that are not among the next, and gives the next.
func replace(old, next identity.RingKeys) identity.RingKeys {
	for _, key := range old.Keys() {
		if !slices.Contains(next.Keys(), key) {
			key.Erase()
		}
	}
	return next
}

// exposed are keys as a report carries them.
func exposed(keys identity.RingKeys) api.RingKeys {
	one := func(k *identity.RingKey) *api.RingKey {
		if k == nil {
			return nil
		}
		return &api.RingKey{Key: k.Expose(), End: k.End().UTC()}
	}
	return api.RingKeys{Previous: one(keys.Previous), Current: one(keys.Current), Next: one(keys.Next)}
}
