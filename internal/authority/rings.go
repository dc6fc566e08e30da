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
	strict, follow identity.RingKeys
}

// addRings adds the ring keys to the report: those of the unit's own identity,
// and of the release that its release continues the follow keys. Nobody is given
// a successor's.
func (a *Authority) addRings(e *enrolment) error {
	a.rings.mu.Lock()
	defer a.rings.mu.Unlock()
	if e.grant.Pact != nil {
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
	life := identity.RingLife(e.grant.Life())
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
	snap := a.current.Load()
	now, err := a.guard.now()
	if err != nil || snap.unnamed != nil {
		err = a.yieldRings(ctx)
	} else if err = a.holdRings(ctx); err == nil {
		a.rings.keep(snap.approved, now)
	}
	if err != nil && !errors.Is(err, wire.RingElsewhere) && ctx.Err() == nil {
		a.log.Warn("keeping the ring lease", "error", err)
	}
}

// cutRings draws unscheduled keys for the tasks from which a new policy takes
// units away: who is cut off holds the current keys and the next.
func (a *Authority) cutRings(old, next policy.Approved) {
	now, err := a.guard.now()
	if err != nil {
		now = a.guard.last()
	}
	a.rings.mu.Lock()
	defer a.rings.mu.Unlock()
	for _, ring := range a.rings.held {
		life, named := ring.life(next)
		if task := next.Document().Tasks[ring.task]; task != nil { // its release may be gone
			life, named = task.Life, true
		}
		if named && ring.loses(old, next) {
			ring.cut(now, identity.RingLife(life))
		}
	}
}

// loses reports whether a new policy cuts off units that hold the ring. In a
// group it does as well when its next roster leaves a member out.
func (r *ring) loses(old, next policy.Approved) bool {
	cuts := func(task string) bool { return policy.CutsOff(old.Document(), next.Document(), task) }
	if r.group.IsZero() {
		return cuts(r.task)
	}
	p := next.PactOf(r.group)
	newest, before := next.Pact(p.Group.Name), old.Pact(p.Group.Name)
	if (before == nil || before.ID() != newest.ID()) && !newest.Keeps(p) {
		return true
	}
	for _, role := range p.Group.Roles {
		for _, m := range role.Members {
			if cuts(m.Task) {
				return true
			}
		}
	}
	return false
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
	r.held[is.identity].roll(e.at, identity.RingLife(e.grant.Life()))
	return r.held[is.identity]
}

// addGroup adds the keys of the unit's role, and those of the whole group. The
// caller holds the mutex.
func (r *rings) addGroup(e *enrolment) {
	id := e.grant.Pact.ID()
	role := r.hold(ring{identity: wire.RoleID(id, e.grant.Role), group: id}, e)
	whole := r.hold(ring{identity: id, group: id}, e)
	e.report.Rings = api.Rings{Strict: exposed(role.strict), Follow: exposed(whole.follow)}
	e.renewWithin(role.strict.Current.End())
}

// life is that of the certificates of a ring's units, and whether the policy
// names them.
func (r *ring) life(p policy.Approved) (time.Duration, bool) {
	if !r.group.IsZero() {
		pact := p.PactOf(r.group)
		if pact == nil {
			return 0, false
		}
		return pact.Group.Life, true
	}
	id, err := identity.ReleaseID(p, r.task, r.release)
	if err != nil || id != r.identity {
		return 0, false
	}
	return p.Document().Tasks[r.task].Life, true
}

// keep rolls the rings of identities that policy names, and drops each other
// ring once no session under it can be alive.
func (r *rings) keep(p policy.Approved, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, ring := range r.held {
		if life, named := ring.life(p); named {
			ring.roll(now, identity.RingLife(life))
		} else if !now.Before(ring.strict.Current.End()) {
			ring.drop()
			delete(r.held, id)
		}
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

func (r *ring) cut(now time.Time, life time.Duration) {
	r.strict, r.follow = replace(r.strict, r.strict.Cut(now, life)), replace(r.follow, r.follow.Cut(now, life))
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
		keys = replace(keys, keys.Roll(due, life))
	}
	return replace(keys, keys.Trim(now))
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
