package unit

import (
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// setRing takes over the ring keys of a report. It refuses, with "malformed",
// keys of another form and a kind of session without a current key, and with
// "identity" keys that are inherited from another release than policy says.
func (e *enrolment) setRing(r api.Rings) (err error) {
	if e.ring.Strict, err = openRing(r.Strict); err != nil {
		return err
	}
	if e.ring.Follow, err = openRing(r.Follow); err != nil || r.Inherited == nil {
		return err
	}
	if e.identity.Group != "" {
		return wire.Refuse(wire.WrongIdentity, "report: keys inherited in a group", r.Inherited.Identity, "no inherited keys")
	}
	task, release := e.identity.Task, e.identity.Release
	before, err := identity.ReleaseID(e.policy, task, e.policy.Document().Tasks[task].Releases[release].Continues)
	if err != nil || r.Inherited.Identity != before {
		return wire.Refuse(wire.WrongIdentity, "report: keys inherited from", r.Inherited.Identity, before)
	}
	e.ring.Inherited.Identity = before
	e.ring.Inherited.Keys, err = openRing(r.Inherited.RingKeys)
	return err
}

func openRing(from api.RingKeys) (identity.RingKeys, error) {
	var keys identity.RingKeys
	if from.Current == nil {
		return keys, wire.Refuse(wire.Malformed, "report: current ring key", "no current key", "a current key for each kind of session")
	}
	for _, k := range []struct {
		from *api.RingKey
		to   **identity.RingKey
	}{{from.Previous, &keys.Previous}, {from.Current, &keys.Current}, {from.Next, &keys.Next}} {
		if k.from == nil {
			continue
		}
		var err error
		if *k.to, err = identity.OpenRingKey(k.from.Key, k.from.End); err != nil {
			return identity.RingKeys{}, err
		}
	}
	return keys, nil
}
