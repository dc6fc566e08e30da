package policy

import (
	"maps"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

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
