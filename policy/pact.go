package policy

import (
	"maps"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Pact is a group as the history stands: its roster and what its parties said.
// Only [Approved.Pact] gives one. It is immutable.
type Pact struct {
	Group  *Group // of the policy under which the roster came to be in force
	Roster Roster
	// Before is the pact whose units go on meanwhile, by the policy's word
	// "continues"; nil is none.
	Before *Pact

	id     attest.Digest
	floors map[string]any
	said   map[string]heard // the newest statement of each party
}

// Pact is the group of a name in the policy in force; nil when there is none.
func (a Approved) Pact(name string) *Pact { return a.pacts[name] }

// PactOf is the pact with an identity, one that is continued included; nil when
// there is none.
func (a Approved) PactOf(id attest.Digest) *Pact {
	for _, p := range a.pacts {
		for ; p != nil; p = p.Before {
			if p.id == id {
				return p
			}
		}
	}
	return nil
}

// ID is the group's identity.
func (p *Pact) ID() attest.Digest { return p.id }

// Agreement is what the parties' statements come to at a time.
func (p *Pact) Agreement(at time.Time) Agreement { return p.Roster.agree(p.said, at) }

// Agreed is the end of the parties' approval. It refuses with "quorum" when too
// few approve at this time, and with "expired" a group that has ended.
func (p *Pact) Agreed(at time.Time) (ends time.Time, err error) {
	a := p.Agreement(at)
	return a.Ends, p.Roster.err(a, at)
}

// Refuted refuses as Agreed does, but only where this history shows that the
// parties do not agree: those that have said nothing in it may have done so since.
// It is for whoever holds a certificate, which no authority issues before they
// agreed.
func (p *Pact) Refuted(at time.Time) error {
	if a := p.Agreement(at); at.Before(p.Roster.Until) && len(a.Approved)+a.Silent >= p.Roster.Quorum {
		return nil
	}
	_, err := p.Agreed(at)
	return err
}

// InForce is p while its parties agree on it, and else the pact it continues
// while they agree on that. It refuses as Agreed does for p.
func (p *Pact) InForce(at time.Time) (*Pact, error) {
	_, err := p.Agreed(at)
	if err == nil {
		return p, nil
	}
	if p.Before != nil {
		if _, gone := p.Before.Agreed(at); gone == nil {
			return p.Before, nil
		}
	}
	return nil, err
}

// Keeps reports whether all members of another roster of the group are members
// of this one, in the same roles.
func (p *Pact) Keeps(other *Pact) bool {
	for _, role := range other.Roster.Roles {
		for _, m := range role.Members {
			if !p.Roster.has(role.Name, m.Identity) {
				return false
			}
		}
	}
	return true
}

// Said are the newest statements of the parties, in the order of the parties.
func (p *Pact) Said() []Said {
	var all []Said
	for _, party := range p.Roster.Parties {
		if s, ok := p.said[party.Name]; ok {
			all = append(all, s.said)
		}
	}
	return all
}

// Next is the number of a party's next statement.
func (p *Pact) Next(party string) uint64 { return p.said[party].Number + 1 }

// ReleaseID is the identity id of code as a task of a policy's trust domain:
// H("cohort identity v1", trust domain, authority root, genesis digest, task
// name, sorted measurements).
func (d *Document) ReleaseID(genesis attest.Digest, task string, list []attest.Measurement) attest.Digest {
	root := d.Authority.Root
	fields := [][]byte{[]byte(d.TrustDomain), root[:], genesis[:], []byte(task)}
	for _, m := range SortedMeasurements(list) {
		fields = append(fields, m.Bytes())
	}
	return wire.Hash(wire.LabelIdentity, fields...)
}

// SortedMeasurements is a copy of list in the one order in which it is encoded,
// each measurement once.
func SortedMeasurements(list []attest.Measurement) []attest.Measurement {
	list = slices.Clone(list)
	slices.SortFunc(list, attest.Measurement.Compare)
	return slices.CompactFunc(list, func(a, b attest.Measurement) bool { return a.Compare(b) == 0 })
}

// pact is the group under a document, with the floors it came to be with.
func (g *Group) pact(doc *Document, genesis attest.Digest, floors map[string]any) *Pact {
	r := Roster{
		TrustDomain: doc.TrustDomain, Root: doc.Authority.Root, Genesis: genesis, Group: g.Name,
		Quorum: g.Quorum, KeyMode: g.KeyMode, Until: g.Until, Floors: literal(floors),
	}
	for _, p := range g.Parties {
		r.Parties = append(r.Parties, RosterParty{p.Name, KeyDigest(p.Key)})
	}
	for _, name := range g.RoleNames() {
		role := RosterRole{Name: name, Calls: g.Roles[name].Calls}
		for _, m := range g.Roles[name].Members {
			id := doc.ReleaseID(genesis, m.Task, doc.Tasks[m.Task].Releases[m.Release].References)
			role.Members = append(role.Members, RosterMember{m, id})
		}
		r.Roles = append(r.Roles, role)
	}
	return &Pact{Group: g, Roster: r, id: r.ID(), floors: floors}
}

// floorsOf is what a document demands of a group's members beside their
// measurements: the tables of their platforms, of the devices beside them included,
// and the settings of their releases.
func (d *Document) floorsOf(g *Group) map[string]any {
	tree := d.tree()
	platforms, tasks := map[string]any{}, map[string]any{}
	for _, role := range g.Roles {
		for _, m := range role.Members {
			if d.Tasks[m.Task] == nil || d.Tasks[m.Task].Releases[m.Release] == nil {
				continue // of an earlier policy
			}
			release := maps.Clone(under(tree, "task", m.Task, "release", m.Release))
			delete(release, "reference") // is in the identity
			delete(release, "continues") // bears on sessions with the task
			inner, _ := tasks[m.Task].(map[string]any)
			if inner == nil {
				inner = map[string]any{}
			}
			inner[m.Release] = release
			tasks[m.Task] = inner
			for _, ref := range d.Tasks[m.Task].Releases[m.Release].References {
				platforms[string(ref.Platform)] = under(tree, "platform", string(ref.Platform))
			}
			for device := range d.Tasks[m.Task].Releases[m.Release].Devices {
				platforms[string(device)] = under(tree, "platform", string(device))
			}
		}
	}
	for task, releases := range tasks {
		tasks[task] = map[string]any{"release": releases}
	}
	return map[string]any{"platform": platforms, "task": tasks}
}

// under is the table at a path.
func under(tree map[string]any, path ...string) map[string]any {
	for _, key := range path {
		tree, _ = tree[key].(map[string]any)
	}
	return tree
}

// loosened reports whether floors demand less than those before.
func loosened(before, now map[string]any) bool {
	return slices.ContainsFunc(diffTables("", "", before, now), func(c Change) bool { return c.Loosens })
}

// succeed makes the pacts of the policy that follows a. A group keeps its
// identity, and what its parties said, as long as nothing in its roster changes
// and no floor falls below those it came to be with.
func (a Approved) succeed(doc *Document) (map[string]*Pact, error) {
	pacts := make(map[string]*Pact, len(doc.Groups))
	for _, name := range doc.GroupNames() {
		g, old := doc.Groups[name], a.pacts[name]
		floors := doc.floorsOf(g)
		next := g.pact(doc, a.genesis, floors)
		if old != nil && !loosened(old.floors, floors) {
			if kept := g.pact(doc, a.genesis, old.floors); kept.id == old.id {
				next, kept.said = kept, old.said
			}
		}
		var err error
		if next.Before, err = next.continued(old, doc); err != nil {
			return nil, err
		}
		pacts[name] = next
	}
	return pacts, nil
}

// GroupsAfter are the identities whose units go on as units of a group once next is
// in force: the group's own then, and the one it continues; none when there is no
// such group. Whether the parties agree on it is another question.
func (a Approved) GroupsAfter(next *Document, name string) (ids []attest.Digest) {
	pacts, err := a.succeed(next)
	if err != nil {
		return nil // no policy that can follow
	}
	for p := pacts[name]; p != nil; p = p.Before {
		ids = append(ids, p.id)
	}
	return ids
}

// continued is the pact that one names with "continues": the one in force before
// it, or the one that was continued already.
func (p *Pact) continued(old *Pact, doc *Document) (*Pact, error) {
	want := p.Group.Continues
	if want.IsZero() {
		return nil, nil
	}
	for ; old != nil; old = old.Before {
		if old.id != want || want == p.id {
			continue
		}
		if old.Group.KeyMode != p.Group.KeyMode {
			return nil, wire.Refuse(wire.BadPolicy, "group "+p.Group.Name+": key mode", p.Group.KeyMode, "that of the group it continues")
		}
		if loosened(old.floors, doc.floorsOf(old.Group)) {
			return nil, wire.Refuse(wire.BadPolicy, "group "+p.Group.Name+": continues", want, "a group whose floors have not fallen")
		}
		before := *old
		before.Before = nil
		return &before, nil
	}
	return nil, wire.Refuse(wire.BadPolicy, "group "+p.Group.Name+": continues", want, "the identity that this group had until now")
}

// hear is a with what a party said. Each number is heard once, and only the
// highest counts.
func (a Approved) hear(step Step) (Approved, error) {
	s, err := ParseStatement(step.Policy)
	if err != nil {
		return Approved{}, err
	}
	if len(step.Signatures) != 1 {
		return Approved{}, wire.Refuse(wire.NoQuorum, "statement: signatures", len(step.Signatures), "one, the party's")
	}
	switch {
	case s.TrustDomain != a.doc.TrustDomain:
		return Approved{}, wire.Refuse(wire.WrongDomain, "statement: trust domain", s.TrustDomain, a.doc.TrustDomain)
	case s.Genesis != a.genesis:
		return Approved{}, wire.Refuse(wire.WrongGenesis, "statement: genesis", s.Genesis, a.genesis)
	}
	p := a.PactOf(s.Group)
	if p == nil {
		return Approved{}, wire.Refuse(wire.StaleRoster, "statement: group identity", s.Group, "that of a group of the policy in force")
	}
	h, err := p.Roster.hear(Said{step.Policy, step.Signatures[0]})
	if err != nil {
		return Approved{}, err
	}
	if least := p.Next(s.Party); s.Number < least {
		return Approved{}, wire.Refuse(wire.WrongSequence, "statement: number", s.Number, least)
	}
	a.pacts = maps.Clone(a.pacts)
	a.pacts[p.Group.Name] = a.pacts[p.Group.Name].with(p.id, h)
	return a.extended(a.doc, step, a.pacts), nil
}

// with is the pact with one more statement, on it or on the one it continues.
func (p *Pact) with(id attest.Digest, h heard) *Pact {
	next := *p
	if p.id != id {
		next.Before = p.Before.with(id, h)
		return &next
	}
	next.said = maps.Clone(p.said)
	if next.said == nil {
		next.said = map[string]heard{}
	}
	next.said[h.Party] = h
	return &next
}
