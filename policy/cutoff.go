package policy

import (
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Facts are the fields of a unit's certificate that [Approved.CutOff] checks by the newest
// policy, whatever the certificate's remaining lifetime.
type Facts struct {
	Task     string        // of the unit's program; empty in a pair of a role
	Release  string        // in a group: the member's
	Identity attest.Digest // of the release, or of the group
	Group    string        // empty outside groups
	Role     string        // in a group
	Party    attest.Digest // in a group: digest of the SSH key of the member's party
	Root     attest.Digest // in a group: SHA-256 of the group root's SubjectPublicKeyInfo
	Unit     wire.UnitID
	Platform attest.Platform
	Chip     string        // as results of appraisal name it
	Head     attest.Digest // under which the leaf was issued; of a shared leaf, its cut
	Shared   bool          // all units of the identity, or of the role, have the leaf
}

// CutOff refuses the unit of a certificate that the newest policy cuts off: with
// "cut-off" a unit of cut_units; a chip, platform, task or release that policy no
// longer accepts; and any leaf that was issued before a step that raised what
// its platform or release must be, because a leaf does not record it. A shared
// leaf is refused that names an earlier cut than [Approved.LastCut]; one that
// names a cut which this history does not have is refused with "behind".
//
// In a group it refuses with "withdrawn" a roster that is no longer in force, as
// [GroupState.ApprovedUntil] does one that the parties do not approve, and as
// [GroupState.Consents] does a unit whose own party does not approve. A shared leaf names
// no party: only units whose party approved after the cut that it names have it, and it
// ends with the first of those approvals.
//
// A leaf that was issued under a head which this history does not have is newer
// than it, and is checked against the policy in force alone.
func (a Approved) CutOff(f Facts, at time.Time) error {
	if !a.Genuine() {
		return errNothing
	}
	id := f.Identity
	if f.Group != "" {
		p := a.GroupByID(f.Identity)
		if p == nil || p.Group.Name != f.Group {
			return wire.Refuse(wire.Withdrawn, "cut-off: identity of group "+f.Group, f.Identity, "that of a roster in force")
		}
		if err := p.checkApproval(f, at); err != nil {
			return err
		}
		id = p.Roster.memberID(f)
	}
	if f.Shared {
		return a.cutPair(f)
	}
	return a.cutUnit(id, f)
}

// checkApproval refuses a leaf of the group if its parties do not approve it, or if the
// unit's own party does not.
func (p *GroupState) checkApproval(f Facts, at time.Time) error {
	_, err := p.ApprovedUntil(f.Root, at)
	if err == nil && !f.Shared {
		_, err = p.Consents(f.Root, f.Party, at)
	}
	return err
}

// cutPair refuses a leaf that several units have.
func (a Approved) cutPair(f Facts) error {
	if _, live := a.live[f.Identity]; f.Group == "" && !live {
		return cutOff("release of task "+f.Task, f.Identity, "one that policy names")
	}
	want := a.LastCut(f.Identity, f.Role)
	if f.Head == want {
		return nil
	}
	if _, known := a.Index(f.Head); !known {
		return wire.Refuse(wire.Behind, "cut-off: cut that a shared leaf names", f.Head, "a head of the known history")
	}
	return cutOff("cut that a shared leaf names", f.Head, want)
}

// cutUnit refuses the leaf of one unit that runs the release of an identity.
func (a Approved) cutUnit(id attest.Digest, f Facts) error {
	program, live := a.live[id]
	if !live {
		return cutOff("release of task "+f.Task, id, "one that policy names")
	}
	if unit := f.Unit.String(); slices.Contains(program.task.CutUnits, unit) {
		return cutOff("unit", unit, "one that is not among cut_units of task "+program.task.Name)
	}
	rules, named := a.doc.Platforms[f.Platform]
	if !named {
		return cutOff("platform", f.Platform, "one that policy names")
	}
	if key := policyfile.ChipRefused(f.Platform, rules, f.Chip); key != "" {
		return cutOff("chip", f.Chip, "one that "+key+" of platform "+string(f.Platform)+" accepts")
	}
	raised := a.raised(id, program.release, f.Platform)
	if issued, known := a.Index(f.Head); known && issued < raised {
		return cutOff("policy head under which the leaf was issued", f.Head, a.heads[raised].String()+", which raised what such a unit must be, or a later one")
	}
	return nil
}

func cutOff(rule string, got, want any) error {
	return wire.Refuse(wire.CutOff, "cut-off: "+rule, got, want)
}

// LastCut returns the head after the last step that may cut off an already admitted unit
// of an identity, or zero. The identity is that of a release, with an empty role, or of a
// group; in a group an empty role is any role. A shared leaf names this head and its key
// is derived from it. If a later step reverts such a step, the cut remains.
func (a Approved) LastCut(identity attest.Digest, role string) attest.Digest {
	return a.headAt(a.cuts.last[holder{identity, role}])
}

// LastCutOfHeirs returns the head after the last step that may cut off a unit of a release
// which continues the release of an identity, directly or through others, or zero: such a
// unit has the keys of sessions that were opened by task name.
func (a Approved) LastCutOfHeirs(identity attest.Digest) attest.Digest {
	return a.headAt(a.cuts.heirs[identity])
}

// headAt returns the head after the last of some steps, or zero.
func (a Approved) headAt(steps indexes) attest.Digest {
	if i := steps.before(len(a.heads)); i >= 0 {
		return a.heads[i]
	}
	return attest.Digest{}
}

// Index returns the place of a head in [Approved.Heads], so that the steps after it are
// Steps()[index+1:]. The index of the zero digest is -1. The result is false for a head
// that this history does not have.
func (a Approved) Index(head attest.Digest) (int, bool) {
	if head.IsZero() {
		return -1, a.Genuine()
	}
	for i, h := range slices.Backward(a.heads) { // most heads asked for are new
		if h == head {
			return i, true
		}
	}
	return 0, false
}

// program is a release that the policy in force names, and its task.
type program struct {
	task    *policyfile.Task
	release *policyfile.Release
}

// programsOf returns the releases of a document by their identities.
func programsOf(d *policyfile.Document, genesis attest.Digest) map[attest.Digest]program {
	all := map[attest.Digest]program{}
	for _, task := range d.Tasks {
		for _, release := range task.Releases {
			all[d.ReleaseID(genesis, task.Name, release.References)] = program{task, release}
		}
	}
	return all
}

// memberID returns the identity of the release that a member of a role runs, or zero if
// the role has no such member.
func (r Roster) memberID(f Facts) attest.Digest {
	for _, m := range r.members(f.Role) {
		if m.Task == f.Task && m.Release == f.Release && r.keyOf(m.Party) == f.Party {
			return m.Identity
		}
	}
	return attest.Digest{}
}

// keyOf returns the digest of the key of a party, or zero for an unknown name.
func (r Roster) keyOf(party string) attest.Digest {
	if i := slices.IndexFunc(r.Parties, func(p RosterParty) bool { return p.Name == party }); i >= 0 {
		return r.Parties[i].Key
	}
	return attest.Digest{}
}
