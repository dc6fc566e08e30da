package policy

import (
	"fmt"
	"maps"
	"slices"
	"strings"
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

	Member Member        // of the roster, in a group
	Party  attest.Digest // key of the member's party, in a group
	Ends   time.Time     // of the approval of that party, or of the group, in a group
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
		if match(release.References, result.Measurement()) == nil {
			return t.grant(release, result)
		}
		all = append(all, release.References...)
	}
	return Grant{}, match(all, result.Measurement())
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

// Pins are what a unit was given of its own party: keys of it, the old and the new
// one while it changes them, and where it was given the group's identity. A unit
// without pins is in no group.
type Pins struct {
	Parties []attest.Digest
	Roster  attest.Digest // zero is any
}

// AdmitMember matches an attestation result with the members of a role at a time.
// It refuses as Admit does; with "role" a program that is a member of another role;
// with "party" a program that the roster has under none, or several, of the pinned
// keys; with "roster" another roster than the pinned one; with "quorum", "expired" or
// "withdrawn" a group that its parties have not agreed on under the root that it has,
// and one that the unit's own party does not approve. While the parties have not agreed,
// a group that is continued admits those that are members of both.
func (a Approved) AdmitMember(group, role string, result attest.Result, pins Pins, root func(*Pact) attest.Digest, at time.Time) (Grant, error) {
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
	inForce, err := p.InForce(root, at)
	if err != nil {
		return Grant{}, err
	}
	id := a.doc.ReleaseID(a.genesis, grant.Task.Name, grant.Release.References)
	if !inForce.Roster.has(role, id) {
		_, err = p.Agreed(root(p), at) // it waits for the parties
		return Grant{}, err
	}
	if grant.Member, grant.Party, err = inForce.Roster.Pinned(role, id, pins); err != nil {
		return Grant{}, err
	}
	own, err := inForce.Consents(root(inForce), grant.Party, at)
	if err != nil {
		return Grant{}, err
	}
	if grant.Ends, err = inForce.Agreed(root(inForce), at); own.Before(grant.Ends) {
		grant.Ends = own
	}
	grant.Pact, grant.Role = inForce, role
	return grant, err
}

// Pinned is the member of a role that the program with an identity is, of the one
// party that is pinned, and that party's key. It refuses with "roster" and "party" as
// [Approved.AdmitMember] does, and does not ask whether the party approves.
func (r Roster) Pinned(role string, id attest.Digest, pins Pins) (m Member, key attest.Digest, err error) {
	if !pins.Roster.IsZero() && pins.Roster != r.ID() {
		return m, key, wire.Refuse(wire.StaleRoster, "admission: roster of group "+r.Group, r.ID(), pins.Roster)
	}
	found, listed := 0, []string{}
	for _, x := range r.members(role) {
		if x.Identity != id {
			continue
		}
		listed = append(listed, x.Party)
		if k := r.keyOf(x.Party); slices.Contains(pins.Parties, k) {
			m, key = x.Member, k
			found++
		}
	}
	if found != 1 {
		want := fmt.Sprint("exactly one of the pinned keys ", pins.Parties)
		return Member{}, attest.Digest{}, wire.Refuse(wire.NoParty, "admission: party of the program in role "+role, strings.Join(listed, ", "), want)
	}
	return m, key, nil
}

// memberOf finds the member of a role that a result is.
func (d *Document) memberOf(r *Role, result attest.Result) (Grant, error) {
	var all []attest.ReferenceValue
	for _, m := range r.Members {
		task := d.Tasks[m.Task]
		release := task.Releases[m.Release]
		if match(release.References, result.Measurement()) == nil {
			return task.grant(release, result)
		}
		all = append(all, release.References...)
	}
	return Grant{}, match(all, result.Measurement())
}

// AdmitAuthority matches a result with the authority's reference values, and with
// the machines that may hold the root ("wrong-chip"). An authority never loads
// unmeasured libraries.
func (a Approved) AdmitAuthority(result attest.Result) error {
	if !a.OK() {
		return errNothing
	}
	return a.doc.admitAuthority(result)
}

func (d *Document) admitAuthority(result attest.Result) error {
	return admitTo(d.Authority.References, d.Authority.Machines, result)
}

// admitTo matches a result with the reference values and the machines of
// authorities.
func admitTo(references []attest.ReferenceValue, machines Machines, result attest.Result) error {
	if err := present(result); err != nil {
		return err
	}
	if result.Dynamic() {
		return wire.Refuse(wire.NotMeasured, "admission: libraries", "an authority that loads unmeasured libraries", "a static one")
	}
	if err := match(references, result.Measurement()); err != nil {
		return err
	}
	return machines.admit(result)
}

// admissible refuses the zero Approved and the zero result.
func (a Approved) admissible(result attest.Result) error {
	if !a.OK() {
		return errNothing
	}
	return present(result)
}

func present(result attest.Result) error {
	if !result.OK() {
		return wire.Refuse(wire.NotMeasured, "admission: attestation result", "none", "an appraised one")
	}
	return nil
}

// match is nil when one of the reference values is the measurement, and else the
// refusal of the nearest: that with the most equal registers.
func match(refs []attest.ReferenceValue, got attest.Measurement) error {
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
