package policy

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// GroupState is the state of a group in a history: its roster and the statements of its
// parties. Only [Approved.GroupByName] and [Approved.GroupByID] return one. It is
// immutable.
type GroupState struct {
	Group  *policyfile.Group // of the policy that introduced the roster
	Roster Roster
	// Predecessor is the group whose units continue meanwhile, by the policy's key
	// "continues"; nil is none.
	Predecessor *GroupState

	id        attest.Digest
	floors    policyfile.Floors
	newest    newestStatements // the newest statement of each key
	former    *approvedRoster  // the roster approved last under the name, nil if that is this one, or none
	succeeded bool             // it was approved before former
}

// GroupByName returns the group of a name in the policy in force, or nil.
func (a Approved) GroupByName(name string) *GroupState { return a.groups[name] }

// GroupByID returns the group with an identity, predecessors included, or nil.
func (a Approved) GroupByID(id attest.Digest) *GroupState {
	for _, p := range a.groups {
		for ; p != nil; p = p.Predecessor {
			if p.id == id {
				return p
			}
		}
	}
	return nil
}

// ID returns the group's identity.
func (p *GroupState) ID() attest.Digest { return p.id }

// ApprovalStatus evaluates the parties' statements for a group root at a time.
func (p *GroupState) ApprovalStatus(root attest.Digest, at time.Time) ApprovalStatus {
	a := p.Roster.approvalStatus(p.newest, root, 0, at)
	if p.former != nil {
		former := p.former.approvalStatus(p.newest, root, p.former.since, at)
		a.Former = &former
		if former.Ends.Before(a.Ends) {
			a.Ends = former.Ends
		}
	}
	return a
}

// ApprovedUntil returns the end of the parties' approval of a group root. It refuses with
// "quorum" if too few parties approve at this time, with "withdrawn" a roster that another
// succeeded, and with "expired" a group that has ended.
func (p *GroupState) ApprovedUntil(root attest.Digest, at time.Time) (ends time.Time, err error) {
	a := p.ApprovalStatus(root, at)
	if err = p.Roster.checkApproved(a, at); err != nil && p.succeeded && at.Before(p.Roster.Until) {
		err = wire.Refuse(wire.Withdrawn, "group "+p.Roster.Group+": identity", p.id, "that of the roster that succeeded it, "+p.former.ID().String())
	}
	return a.Ends, err
}

// Roots returns the group roots that a quorum of the parties approves at a time, in order:
// one, unless the quorum is at most half of the parties.
func (p *GroupState) Roots(at time.Time) []attest.Digest {
	var roots []attest.Digest
	for root := range p.Roster.approvedRoots(p.newest, 0) {
		if _, err := p.ApprovedUntil(root, at); err == nil {
			roots = append(roots, root)
		}
	}
	slices.SortFunc(roots, func(x, y attest.Digest) int { return bytes.Compare(x[:], y[:]) })
	return roots
}

// ApprovedRoot returns a function that finds the first root that the parties of a group
// approve at a time. If there is none, it returns the root of one approval, so that a
// refusal counts the parties that approve it, or the zero digest;
// [GroupState.ApprovedUntil] refuses both. It is for callers that have no group root of
// their own.
func ApprovedRoot(at time.Time) func(*GroupState) attest.Digest {
	return func(p *GroupState) (root attest.Digest) {
		if roots := p.Roots(at); len(roots) > 0 {
			return roots[0]
		}
		for _, s := range p.newest {
			if s.approves(s.GroupRoot) && (root.IsZero() || bytes.Compare(s.GroupRoot[:], root[:]) < 0) {
				root = s.GroupRoot
			}
		}
		return root
	}
}

// Consents returns the end of one party's own approval of a group root. It refuses with
// "party" a key that is not a party's, with "withdrawn" a party that withdrew, with
// "quorum" one that has not approved this root, and with "expired" an approval that has
// ended. A quorum of other parties does not replace it.
func (p *GroupState) Consents(root, party attest.Digest, at time.Time) (ends time.Time, err error) {
	i := slices.IndexFunc(p.Roster.Parties, func(x RosterParty) bool { return x.Key == party })
	if i < 0 {
		return time.Time{}, wire.Refuse(wire.NoParty, "group "+p.Roster.Group+": key of the unit's party", party, "that of a party of the roster")
	}
	rule, s := "group "+p.Roster.Group+": approval of party "+p.Roster.Parties[i].Name, p.newest.latest(party)
	switch {
	case s.Number == 0:
		return time.Time{}, wire.Refuse(wire.NoQuorum, rule, "no statement of the party", "of group root "+root.String())
	case s.withdrawn():
		return time.Time{}, wire.Refuse(wire.Withdrawn, rule, fmt.Sprint("withdrawn by statement ", s.Number), "an approval with a higher number")
	case s.GroupRoot != root:
		return time.Time{}, wire.Refuse(wire.NoQuorum, rule, "of group root "+s.GroupRoot.String(), "of group root "+root.String())
	case !at.Before(s.NotAfter):
		return time.Time{}, wire.Refuse(wire.Expired, rule, at.UTC(), "before its end "+s.NotAfter.UTC().Format(time.RFC3339))
	}
	return s.NotAfter, nil
}

// InForce returns p if its parties approve it, and otherwise its predecessor if its
// parties approve that, each under its own root. It refuses as ApprovedUntil does for p.
func (p *GroupState) InForce(root func(*GroupState) attest.Digest, at time.Time) (*GroupState, error) {
	_, err := p.ApprovedUntil(root(p), at)
	if err == nil {
		return p, nil
	}
	if p.Predecessor != nil {
		if _, gone := p.Predecessor.ApprovedUntil(root(p.Predecessor), at); gone == nil {
			return p.Predecessor, nil
		}
	}
	return nil, err
}

// Keeps reports whether all members of another roster of the group are members
// of this one, in the same roles.
func (p *GroupState) Keeps(other *GroupState) bool {
	for _, role := range other.Roster.Roles {
		for _, m := range role.Members {
			if !p.Roster.hasMember(role.Name, m.Identity) {
				return false
			}
		}
	}
	return true
}

// SignedStatements returns the newest statements of the parties, in the order of the
// parties, and both of a party that signed two texts with one number.
func (p *GroupState) SignedStatements() []SignedStatement {
	var all []SignedStatement
	for _, party := range p.Roster.Parties {
		if s := p.newest.latest(party.Key); s.Number > 0 {
			all = append(all, s.signed)
			if s.other != nil {
				all = append(all, *s.other)
			}
		}
	}
	return all
}

// Knows reports whether a statement is the newest of its key, or another text of
// that number.
func (p *GroupState) Knows(statement []byte) bool {
	for _, s := range p.newest {
		if bytes.Equal(s.signed.Statement, statement) || s.other != nil && bytes.Equal(s.other.Statement, statement) {
			return true
		}
	}
	return false
}

// Statement returns the approval of a group root, until the group's end, that a key can
// make next. The caller may change it before it is signed. It refuses with "not-owner" a
// key that is not a party's, neither in the roster nor in the one approved before it.
func (p *GroupState) Statement(key, root attest.Digest) (Statement, error) {
	s := Statement{
		TrustDomain: p.Roster.TrustDomain, Genesis: p.Roster.Genesis, Group: p.id, GroupRoot: root, Key: key,
		Number: p.newest.latest(key).Number + 1, NotAfter: p.Roster.Until,
	}
	if party, ok := p.partyOfKey(key); ok {
		s.Party = party.Name
		return s, nil
	}
	return s, wire.Refuse(wire.NotOwner, "group "+p.Roster.Group+": key", key, "that of a party")
}

// EndsApproval reports whether a statement would end an approval. The history reserves the
// room of such a step, so no limit delays it.
func (p *GroupState) EndsApproval(s Statement) bool {
	last := p.newest.latest(s.Key)
	return last.approves(last.GroupRoot) && (s.Withdraws && s.Number > last.Number || s.Number == last.Number)
}

// partyOfKey returns the party that may make statements with a key: one of the roster, or
// else one of the roster approved last.
func (p *GroupState) partyOfKey(key attest.Digest) (RosterParty, bool) {
	has := func(x RosterParty) bool { return x.Key == key }
	if i := slices.IndexFunc(p.Roster.Parties, has); i >= 0 {
		return p.Roster.Parties[i], true
	}
	if p.former != nil {
		if i := slices.IndexFunc(p.former.Parties, has); i >= 0 {
			return p.former.Parties[i], true
		}
	}
	return RosterParty{}, false
}

// newGroupState returns the state of a group under a document, with the floors of the
// document that introduced it.
func newGroupState(g *policyfile.Group, doc *policyfile.Document, genesis attest.Digest, floors policyfile.Floors) *GroupState {
	r := Roster{
		TrustDomain: doc.TrustDomain, Root: doc.Authority.Root, Genesis: genesis, Group: g.Name,
		Quorum: g.Quorum, KeyMode: g.KeyMode, Until: g.Until, Floors: floors.String(), Authority: g.Authority.String(),
	}
	for _, p := range g.Parties {
		r.Parties = append(r.Parties, RosterParty{p.Name, sshsig.KeyDigest(p.Key)})
	}
	for _, name := range g.RoleNames() {
		role := RosterRole{Name: name, Calls: g.Roles[name].Calls}
		for _, m := range g.Roles[name].Members {
			id := doc.ReleaseID(genesis, m.Task, doc.Tasks[m.Task].Releases[m.Release].References)
			role.Members = append(role.Members, RosterMember{m, id})
		}
		r.Roles = append(r.Roles, role)
	}
	return &GroupState{Group: g, Roster: r, id: r.ID(), floors: floors}
}

// nextGroups returns the groups of the policy that follows a. A group keeps its identity,
// and the statements of its parties, as long as its roster is unchanged and no floor is
// below those with which it was introduced.
func (a Approved) nextGroups(doc *policyfile.Document) (map[string]*GroupState, error) {
	groups := make(map[string]*GroupState, len(doc.Groups))
	for _, name := range doc.GroupNames() {
		g, old := doc.Groups[name], a.groups[name]
		floors := doc.FloorsOf(g)
		next := newGroupState(g, doc, a.genesis, floors)
		if old != nil && !old.floors.Loosened(floors) {
			if kept := newGroupState(g, doc, a.genesis, old.floors); kept.id == old.id {
				next = kept
			}
		}
		var err error
		if next.Predecessor, err = next.predecessor(old, doc); err != nil {
			return nil, err
		}
		groups[name] = next
	}
	return groups, nil
}

// GroupsAfter returns the identities whose units continue as units of a group once next is
// in force: that of the group, and that of its predecessor; none if there is no such
// group. It does not check approvals.
func (a Approved) GroupsAfter(next *policyfile.Document, name string) (ids []attest.Digest) {
	groups, err := a.nextGroups(next)
	if err != nil {
		return nil // not a policy that can follow
	}
	for p := groups[name]; p != nil; p = p.Predecessor {
		ids = append(ids, p.id)
	}
	return ids
}

// predecessor returns the group that p names with "continues": the one in force before it,
// or the predecessor of that.
func (p *GroupState) predecessor(old *GroupState, doc *policyfile.Document) (*GroupState, error) {
	want := p.Group.Continues
	if want.IsZero() {
		return nil, nil
	}
	for ; old != nil; old = old.Predecessor {
		if old.id != want || want == p.id {
			continue
		}
		if old.Group.KeyMode != p.Group.KeyMode {
			return nil, wire.Refuse(wire.BadPolicy, "group "+p.Group.Name+": key mode", p.Group.KeyMode, "that of the group it continues")
		}
		if old.floors.Loosened(doc.FloorsOf(old.Group)) {
			return nil, wire.Refuse(wire.BadPolicy, "group "+p.Group.Name+": continues", want, "a group whose floors have not fallen")
		}
		before := *old
		before.Predecessor = nil
		return &before, nil // assign adds the statements of its parties
	}
	return nil, wire.Refuse(wire.BadPolicy, "group "+p.Group.Name+": continues", want, "the identity that this group had until now")
}
