package policy

import (
	"maps"
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

// cuts are the steps of a history that cut units off. They are computed when a step is
// approved, and remain when a later step reverts it. Readers pass the number of steps: an
// earlier policy of the same history may have the same maps.
type cuts struct {
	// last are the steps that may have cut off a unit of the holder, and heirs those
	// that may have cut off a unit of a release which continues the release of an
	// identity, by itself or through others.
	last  map[holder]indexes
	heirs map[attest.Digest]indexes
	// whole are the steps that cut off whatever had the identity of a release until
	// then, and floors those that raised the rules of a platform. A leaf does not record
	// the raised properties, so they refuse every older one.
	whole  map[attest.Digest]indexes
	floors map[attest.Platform]indexes
	// kept is true if another Approved may write into the maps or read them at the
	// same time, so that they are copied before anything is written.
	kept bool
}

// indexes are places of steps in a history, in their order.
type indexes []int

// before returns the last index before end, or -1.
func (x indexes) before(end int) int {
	for _, i := range slices.Backward(x) {
		if i < end {
			return i
		}
	}
	return -1
}

// holder identifies the units that share a leaf, or ring keys: those of a release, of a
// role in a group, or of all its roles.
type holder struct {
	identity attest.Digest
	role     string // empty outside groups, and for all roles
}

// raised returns the last step that refuses every older leaf of a release on a platform,
// or -1.
func (a Approved) raised(id attest.Digest, r *policyfile.Release, p attest.Platform) int {
	last := max(a.cuts.whole[id].before(len(a.heads)), a.cuts.floors[p].before(len(a.heads)))
	for device := range r.Devices {
		last = max(last, a.cuts.floors[device].before(len(a.heads)))
	}
	return last
}

// stepCuts has the cuts of one step.
type stepCuts struct {
	holders []holder
	heirs   []attest.Digest
	whole   []attest.Digest
	floors  []attest.Platform
}

// withStep returns c after the step of an index.
func (c cuts) withStep(f stepCuts, index int) cuts {
	if len(f.holders)+len(f.whole)+len(f.floors) == 0 {
		return c
	}
	if c.kept || c.last == nil {
		c = cuts{last: copied(c.last), heirs: copied(c.heirs), whole: copied(c.whole), floors: copied(c.floors)}
	}
	for _, h := range f.holders {
		c.last[h] = append(c.last[h], index)
		if all := (holder{identity: h.identity}); all != h {
			c.last[all] = append(c.last[all], index)
		}
	}
	for _, id := range f.heirs {
		c.heirs[id] = append(c.heirs[id], index)
	}
	for _, id := range f.whole {
		c.whole[id] = append(c.whole[id], index)
	}
	for _, p := range f.floors {
		c.floors[p] = append(c.floors[p], index)
	}
	return c
}

// copied returns a copy of m whose lists do not share memory with those of m.
func copied[K comparable](m map[K]indexes) map[K]indexes {
	next := make(map[K]indexes, len(m)+1)
	for k, list := range m {
		next[k] = slices.Clip(list)
	}
	return next
}

// cutBy returns the cuts of a policy that follows a.
func (a Approved) cutBy(doc *policyfile.Document, live map[attest.Digest]program, groups map[string]*GroupState) (f stepCuts) {
	narrowed, raised := policyfile.Tightened(a.doc, doc)
	f.floors = slices.Collect(maps.Keys(raised))
	cut := map[attest.Digest]bool{}
	for id, was := range a.live {
		now, stays := live[id]
		switch {
		case !stays || raisedBy(was.release, now.release):
			f.whole, cut[id] = append(f.whole, id), true
		case runsOn(now.release, narrowed) || slices.ContainsFunc(now.task.CutUnits, func(u string) bool { return !slices.Contains(was.task.CutUnits, u) }):
			cut[id] = true
		}
		if cut[id] {
			f.holders = append(f.holders, holder{identity: id})
			f.heirs = append(f.heirs, a.continuedBy(was)...)
		}
	}
	for _, p := range chains(a.groups) {
		gone := !slices.ContainsFunc(chains(groups), func(q *GroupState) bool { return q.id == p.id })
		for _, role := range p.Roster.Roles {
			if gone || slices.ContainsFunc(role.Members, func(m RosterMember) bool { return cut[m.Identity] }) {
				f.holders = append(f.holders, holder{p.id, role.Name})
			}
		}
	}
	return f
}

// continuedBy returns the releases that a release continues, directly or through others.
func (a Approved) continuedBy(p program) (ids []attest.Digest) {
	for r := p.task.Releases[p.release.Continues]; r != nil; r = p.task.Releases[r.Continues] {
		ids = append(ids, a.doc.ReleaseID(a.genesis, p.task.Name, r.References))
	}
	return ids // no release leads back to itself
}

// cutByStatement returns the cuts of a party's statement: the key pairs of each group that
// the party approves less than before.
func cutByStatement(before, after map[string]*GroupState) (f stepCuts) {
	now := chains(after)
	for _, p := range chains(before) {
		i := slices.IndexFunc(now, func(q *GroupState) bool { return q.id == p.id })
		if i < 0 || now[i] == p || !slices.ContainsFunc(p.Roster.Parties, func(party RosterParty) bool {
			return p.newest.latest(party.Key).takenBack(now[i].newest.latest(party.Key))
		}) {
			continue
		}
		for _, role := range p.Roster.Roles {
			f.holders = append(f.holders, holder{p.id, role.Name})
		}
	}
	return f
}

// takenBack reports whether a party that approved a group root no longer does, or not
// for as long: a unit of its was admitted for that.
func (h verifiedStatement) takenBack(now verifiedStatement) bool {
	return h.approves(h.GroupRoot) && (!now.approves(h.GroupRoot) || now.NotAfter.Before(h.NotAfter))
}

// chains returns the groups of a policy and their predecessors.
func chains(groups map[string]*GroupState) (all []*GroupState) {
	for _, p := range groups {
		for ; p != nil; p = p.Predecessor {
			all = append(all, p)
		}
	}
	return all
}

// raisedBy reports whether a release requires more of its units than before in a property
// that their leaves do not record.
func raisedBy(was, now *policyfile.Release) bool {
	for p, n := range now.Devices {
		if n > was.Devices[p] {
			return true
		}
	}
	return was.Dynamic && !now.Dynamic
}

// runsOn reports whether units of a release are on one of the platforms, or have
// devices of it.
func runsOn(r *policyfile.Release, platforms map[attest.Platform]bool) bool {
	for p := range r.Devices {
		if platforms[p] {
			return true
		}
	}
	return slices.ContainsFunc(r.References, func(v attest.ReferenceValue) bool { return platforms[v.Platform] })
}
