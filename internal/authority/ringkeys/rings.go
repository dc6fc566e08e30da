package ringkeys

import (
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// ring has the keys with which the units of one identity encrypt sessions.
type ring struct {
	identity       attest.Digest
	task, release  string        // outside groups
	group          attest.Digest // the group's identity, in groups; identity is then the same, or that of a role
	role           string        // the role, if identity is that of a role
	head           attest.Digest // of the newest policy that was applied to the ring
	strict, follow identity.RingKeys
}

// Request is an enrolment that needs ring keys.
type Request struct {
	Approved policy.Approved // the history under which the enrolment was decided
	Grant    policy.Grant
	At       time.Time
}

// AddKeys returns the ring keys for a report, and when the current strict key ends. They are the
// keys of the unit's own identity, and the follow keys of the release that its release continues.
// No unit gets keys of a successor. Call [Keyring.EnsureLease] first.
func (k *Keyring) AddKeys(r Request) (api.Rings, time.Time, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if p := r.Grant.GroupState; p != nil {
		id := p.ID()
		role := k.rollRing(ring{identity: wire.RoleID(id, r.Grant.Role), group: id, role: r.Grant.Role}, r)
		whole := k.rollRing(ring{identity: id, group: id}, r)
		return api.Rings{Strict: exposed(role.strict), Follow: exposed(whole.follow)}, role.strict.Current.Expires(), nil
	}
	own, err := k.releaseRing(r, r.Grant.Release.Name)
	if err != nil {
		return api.Rings{}, time.Time{}, err
	}
	keys := api.Rings{Strict: exposed(own.strict), Follow: exposed(own.follow)}
	if before := r.Grant.Release.Continues; before != "" {
		inherited, err := k.releaseRing(r, before)
		if err != nil {
			return api.Rings{}, time.Time{}, err
		}
		keys.Inherited = &api.InheritedRing{Identity: inherited.identity, RingKeys: exposed(inherited.follow)}
	}
	return keys, own.strict.Current.Expires(), nil
}

// applyPolicy draws new keys, without previous ones, if the policy has cut off a unit with the
// old keys since it was last applied: from then on nothing is sealed or opened with the old keys.
// A policy older than the one last applied changes nothing.
func (r *ring) applyPolicy(p policy.Approved, now time.Time, lifetime time.Duration) {
	if r.head.IsZero() {
		r.head = p.PolicyHead()
	}
	before, known := p.AtHead(r.head)
	if !known || r.head == p.PolicyHead() {
		return
	}
	holders := identity.RingHolders{Identity: r.identity}
	if !r.group.IsZero() {
		holders = identity.RingHolders{Identity: r.group, Role: r.role}
	}
	left := r.memberLeft(before, p)
	if left || identity.RingCutSince(p, holders, r.head) {
		r.strict = replace(r.strict, identity.NewRingKeys(now, lifetime))
	}
	holders.Follow = true
	if left || identity.RingCutSince(p, holders, r.head) {
		r.follow = replace(r.follow, identity.NewRingKeys(now, lifetime))
	}
	r.head = p.PolicyHead()
}

// memberLeft reports whether the group of a ring has a newer roster than before, without a member
// whose units have the ring's keys.
func (r *ring) memberLeft(before, now policy.Approved) bool {
	if r.group.IsZero() {
		return false
	}
	p := now.GroupByID(r.group)
	newest, old := now.GroupByName(p.Group.Name), before.GroupByName(p.Group.Name)
	return (old == nil || old.ID() != newest.ID()) && !newest.Keeps(p)
}

// releaseRing returns the ring of a release of the enrolment's task, rolled to the time of the
// enrolment. The caller has locked mu.
func (k *Keyring) releaseRing(r Request, release string) (*ring, error) {
	id, err := identity.ReleaseID(r.Approved, r.Grant.Task.Name, release)
	if err != nil {
		return nil, err
	}
	return k.rollRing(ring{identity: id, task: r.Grant.Task.Name, release: release}, r), nil
}

// rollRing returns the ring of an identity, with the policy applied and its keys rolled. It adds
// first if the identity has no ring. The caller has locked mu.
func (k *Keyring) rollRing(first ring, r Request) *ring {
	if k.rings[first.identity] == nil {
		k.rings[first.identity] = &first
	}
	ring, lifetime := k.rings[first.identity], identity.RingLifetime(r.Grant.LeafLifetime())
	ring.applyPolicy(r.Approved, r.At, lifetime)
	ring.rollKeys(r.At, lifetime)
	return ring
}

// lifetime returns the lifetime of the certificates of a ring's units, and whether the policy
// names the ring's identity.
func (r *ring) lifetime(p policy.Approved) (time.Duration, bool) {
	if !r.group.IsZero() {
		group := p.GroupByID(r.group)
		if group == nil {
			return 0, false
		}
		return group.Group.Lifetime, true
	}
	id, err := identity.ReleaseID(p, r.task, r.release)
	if err != nil || id != r.identity {
		return 0, false
	}
	return p.Document().Tasks[r.task].Lifetime, true
}

// Apply applies a policy to the rings of identities that it names and rolls their keys. It drops
// all other rings.
func (k *Keyring) Apply(p policy.Approved, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, ring := range k.rings {
		lifetime, named := ring.lifetime(p)
		if !named {
			ring.erase()
			delete(k.rings, id)
			continue
		}
		ring.applyPolicy(p, now, identity.RingLifetime(lifetime))
		ring.rollKeys(now, identity.RingLifetime(lifetime))
	}
}

// KeysOf returns the keys of an identity, without keys if it has no ring.
func (k *Keyring) KeysOf(id attest.Digest) (strict, follow identity.RingKeys) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if ring := k.rings[id]; ring != nil {
		return ring.strict, ring.follow
	}
	return strict, follow
}

// dropRings ends the lease here and erases all ring keys: from now on another authority makes
// them.
func (k *Keyring) dropRings() {
	k.renewal, k.until = 0, 0
	k.leased.Set(0)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, ring := range k.rings {
		ring.erase()
	}
	clear(k.rings)
}

func (r *ring) rollKeys(now time.Time, lifetime time.Duration) {
	r.strict, r.follow = rolled(r.strict, now, lifetime), rolled(r.follow, now, lifetime)
}

func (r *ring) erase() {
	replace(r.strict, identity.RingKeys{})
	replace(r.follow, identity.RingKeys{})
}

// rolled returns keys as of a time. It rolls them each time the current key has one lifetime
// left, so that its end stays as units know it, and draws new keys when all have ended. It erases
// the keys that it drops.
func rolled(keys identity.RingKeys, now time.Time, lifetime time.Duration) identity.RingKeys {
	if keys.Current == nil || !now.Before(keys.Next.Expires()) {
		return replace(keys, identity.NewRingKeys(now, lifetime))
	}
	for due := keys.Current.Expires().Add(-lifetime); !now.Before(due); due = due.Add(lifetime) {
		keys = replace(keys, keys.Rotate(due, lifetime))
	}
	return replace(keys, keys.WithoutExpired(now))
}

// replace erases the keys of old that are not in next, and returns next.
func replace(old, next identity.RingKeys) identity.RingKeys {
	for _, key := range old.Keys() {
		if !slices.Contains(next.Keys(), key) {
			key.Erase()
		}
	}
	return next
}

// exposed returns keys in the form of a report.
func exposed(keys identity.RingKeys) api.RingKeys {
	one := func(k *identity.RingKey) *api.RingKey {
		if k == nil {
			return nil
		}
		return &api.RingKey{Key: k.Expose(), End: k.Expires().UTC()}
	}
	return api.RingKeys{Previous: one(keys.Previous), Current: one(keys.Current), Next: one(keys.Next)}
}
