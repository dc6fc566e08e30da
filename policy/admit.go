package policy

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Grant is what policy gives an attested unit.
type Grant struct {
	Task    *Task
	Release *Release
	Result  attest.Result
	Pact    *Pact  // in a group; nil outside
	Role    string // in a group
}

// Life is that of the unit's leaf certificates.
func (g Grant) Life() time.Duration {
	if g.Pact != nil {
		return g.Pact.Group.Life
	}
	return g.Task.Life
}

// Admit matches an attestation result with the releases of a task. It refuses
// with "not-found" for an unknown task and with "measurement", naming got and
// want of the nearest reference value, when no release matches; a program that
// loads unmeasured libraries is refused unless its release says dynamic, and one
// without the devices that its release demands with "device-missing".
func (a Approved) Admit(task string, result attest.Result) (Grant, error) {
	if err := a.admissible(result); err != nil {
		return Grant{}, err
	}
	t := a.doc.Tasks[task]
	if t == nil {
		return Grant{}, wire.Refuse(wire.NotFound, "admission: task", task, "a task of the policy")
	}
	var all []attest.ReferenceValue
	for _, name := range t.ReleaseNames() {
		release := t.Releases[name]
		if match(release.References, result) == nil {
			return t.grant(release, result)
		}
		all = append(all, release.References...)
	}
	return Grant{}, match(all, result)
}

// grant is what a program that is a release gets. It refuses one that loads
// unmeasured libraries, unless the release says dynamic, and one that lacks a device.
func (t *Task) grant(r *Release, result attest.Result) (Grant, error) {
	if result.Dynamic() && !r.Dynamic {
		return Grant{}, wire.Refuse(wire.NotMeasured, "admission: libraries", "a program that loads unmeasured libraries", "a static one, or dynamic = true in release "+r.Name)
	}
	if err := r.Equipped(result.Devices()); err != nil {
		return Grant{}, err
	}
	return Grant{Task: t, Release: r, Result: result}, nil
}

// Equipped refuses, with "device-missing", fewer devices of a platform than the
// release demands.
func (r *Release) Equipped(devices []attest.Device) error {
	have := map[attest.Platform]int{}
	for _, d := range devices {
		have[d.Platform]++
	}
	for _, p := range slices.Sorted(maps.Keys(r.Devices)) {
		if have[p] < r.Devices[p] {
			return wire.Refuse(wire.DeviceMissing, "admission: devices of platform "+string(p), have[p], fmt.Sprintf("at least %d, by release %s", r.Devices[p], r.Name))
		}
	}
	return nil
}

// AdmitMember matches an attestation result with the members of a role at a
// time. It refuses as Admit does; with "role" a program that is a member of
// another role; and with "quorum" or "expired" a group that its parties have not
// agreed on. While they have not, a group that is continued admits those that
// are members of both.
func (a Approved) AdmitMember(group, role string, result attest.Result, at time.Time) (Grant, error) {
	if err := a.admissible(result); err != nil {
		return Grant{}, err
	}
	p := a.pacts[group]
	if p == nil || p.Group.Roles[role] == nil {
		return Grant{}, wire.Refuse(wire.NotFound, "admission: role of group "+group, role, "one of the policy")
	}
	grant, err := a.doc.memberOf(p.Group.Roles[role], result)
	if err != nil {
		for _, other := range p.Group.RoleNames() {
			if _, no := a.doc.memberOf(p.Group.Roles[other], result); no == nil {
				return Grant{}, wire.Refuse(wire.WrongRole, "admission: role", role, other)
			}
		}
		return Grant{}, err
	}
	inForce, err := p.InForce(at)
	if err != nil {
		return Grant{}, err
	}
	if !inForce.Roster.has(role, p.Roster.identity(role, grant)) {
		_, err = p.Agreed(at) // it waits for the parties
		return Grant{}, err
	}
	grant.Pact, grant.Role = inForce, role
	return grant, nil
}

// memberOf finds the member of a role that a result is.
func (d *Document) memberOf(r *Role, result attest.Result) (Grant, error) {
	var all []attest.ReferenceValue
	for _, m := range r.Members {
		task := d.Tasks[m.Task]
		release := task.Releases[m.Release]
		if match(release.References, result) == nil {
			return task.grant(release, result)
		}
		all = append(all, release.References...)
	}
	return Grant{}, match(all, result)
}

// AdmitAuthority matches a result with the authority's reference values. An
// authority never loads unmeasured libraries.
func (a Approved) AdmitAuthority(result attest.Result) error {
	if err := a.admissible(result); err != nil {
		return err
	}
	if result.Dynamic() {
		return wire.Refuse(wire.NotMeasured, "admission: libraries", "an authority that loads unmeasured libraries", "a static one")
	}
	return match(a.doc.Authority.References, result)
}

// admissible refuses the zero Approved and the zero result.
func (a Approved) admissible(result attest.Result) error {
	if !a.OK() {
		return errNothing
	}
	if !result.OK() {
		return wire.Refuse(wire.NotMeasured, "admission: attestation result", "none", "an appraised one")
	}
	return nil
}

// match is nil when one of the reference values is the result's measurement,
// and else the refusal of the nearest: that with the most equal registers.
func match(refs []attest.ReferenceValue, result attest.Result) error {
	got := result.Measurement()
	nearest := wire.Refuse(wire.NotMeasured, "measurement", got, "a reference value of the policy")
	best := -1
	for _, ref := range refs {
		err := attest.Match(ref, got)
		if err == nil {
			return nil
		}
		if n := agreement(ref, got); n > best {
			nearest, best = err, n
		}
	}
	return nearest
}

// agreement counts the registers that agree; -1 is another platform.
func agreement(ref attest.ReferenceValue, got attest.Measurement) int {
	if ref.Platform != got.Platform {
		return -1
	}
	n := 0
	for i, r := range ref.Registers {
		if i < len(got.Registers) && (r.Any || string(r.Value) == string(got.Registers[i].Value)) {
			n++
		}
	}
	return n
}
