package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Grant is the result of admission: the task, the release and the role of an attested
// unit.
type Grant struct {
	Task       *policyfile.Task
	Release    *policyfile.Release
	Result     attest.Result
	GroupState *GroupState // in a group; nil outside
	Role       string      // in a group

	Member policyfile.Member // of the roster, in a group
	Party  attest.Digest     // key of the member's party, in a group
	Ends   time.Time         // of the approval of that party, or of the group, in a group
}

// LeafLifetime returns the lifetime of the unit's leaf certificates.
func (g Grant) LeafLifetime() time.Duration {
	if g.GroupState != nil {
		return g.GroupState.Group.Lifetime
	}
	return g.Task.Lifetime
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
		if policyfile.Match(release.References, result.Measurement()) == nil {
			return grantOf(t, release, result)
		}
		all = append(all, release.References...)
	}
	return Grant{}, policyfile.Match(all, result.Measurement())
}

// grantOf returns the grant of a program that is a release, if the release admits it.
func grantOf(t *policyfile.Task, r *policyfile.Release, result attest.Result) (Grant, error) {
	if err := r.Admit(result); err != nil {
		return Grant{}, err
	}
	return Grant{Task: t, Release: r, Result: result}, nil
}

// Pins are a unit's configured pins of its own party: the party's keys, the old and the
// new one while it changes them, and the identity of the group. A unit without pins is in
// no group.
type Pins struct {
	Parties []attest.Digest
	Roster  attest.Digest // zero is any
}

// AdmitMember matches an attestation result with the members of a role at a time.
// It refuses as Admit does; with "role" a program that is a member of another role;
// with "party" a program that the roster lists under none, or several, of the pinned
// keys; with "roster" another roster than the pinned one; with "quorum", "expired" or
// "withdrawn" a group that its parties have not approved under its root, and one that
// the unit's own party does not approve. Until the parties have approved a group, its
// predecessor admits the programs that are members of both.
func (a Approved) AdmitMember(group, role string, result attest.Result, pins Pins, root func(*GroupState) attest.Digest, at time.Time) (Grant, error) {
	if err := a.admissible(result); err != nil {
		return Grant{}, err
	}
	p := a.groups[group]
	if p == nil || p.Group.Roles[role] == nil {
		return Grant{}, wire.Refuse(wire.NotFound, "admission: role of group "+group, role, "a role of the policy")
	}
	grant, err := memberOf(a.doc, p.Group.Roles[role], result)
	if err != nil {
		for _, other := range p.Group.RoleNames() {
			if _, no := memberOf(a.doc, p.Group.Roles[other], result); no == nil {
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
	if !inForce.Roster.hasMember(role, id) {
		_, err = p.ApprovedUntil(root(p), at) // it waits for its parties
		return Grant{}, err
	}
	if grant.Member, grant.Party, err = inForce.Roster.Pinned(role, id, pins); err != nil {
		return Grant{}, err
	}
	own, err := inForce.Consents(root(inForce), grant.Party, at)
	if err != nil {
		return Grant{}, err
	}
	if grant.Ends, err = inForce.ApprovedUntil(root(inForce), at); own.Before(grant.Ends) {
		grant.Ends = own
	}
	grant.GroupState, grant.Role = inForce, role
	return grant, err
}

// Pinned returns the member of a role with an identity whose party has a pinned key, and
// that key. It refuses with "roster" and "party" as [Approved.AdmitMember] does. It does
// not check whether the party approves.
func (r Roster) Pinned(role string, id attest.Digest, pins Pins) (m policyfile.Member, key attest.Digest, err error) {
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
		return policyfile.Member{}, attest.Digest{}, wire.Refuse(wire.NoParty, "admission: party of the program in role "+role, strings.Join(listed, ", "), want)
	}
	return m, key, nil
}

// memberOf returns the grant of the member of a role that a result matches.
func memberOf(d *policyfile.Document, r *policyfile.Role, result attest.Result) (Grant, error) {
	var all []attest.ReferenceValue
	for _, m := range r.Members {
		task := d.Tasks[m.Task]
		release := task.Releases[m.Release]
		if policyfile.Match(release.References, result.Measurement()) == nil {
			return grantOf(task, release, result)
		}
		all = append(all, release.References...)
	}
	return Grant{}, policyfile.Match(all, result.Measurement())
}

// AdmitAuthority matches a result with the authority's reference values, and with the
// machines that may have the root ("wrong-chip"). It refuses an authority that loads
// unmeasured libraries.
func (a Approved) AdmitAuthority(result attest.Result) error {
	if !a.Genuine() {
		return errNothing
	}
	return a.doc.Authority.Admit(result)
}

// admissible refuses the zero Approved and the zero result.
func (a Approved) admissible(result attest.Result) error {
	if !a.Genuine() {
		return errNothing
	}
	return policyfile.CheckAppraised(result)
}
