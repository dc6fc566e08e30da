package policy

import (
	"fmt"
	"maps"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// groupRecords are the records of groups in a history, apart from the policy in force.
// They remain when a group leaves the policy, so that no statement counts twice and a name
// always belongs to the rosters that were approved under it. They are immutable.
type groupRecords struct {
	statements map[attest.Digest]newestStatements // by group identity
	last       map[string]*approvedRoster         // by group name
	past       map[attest.Digest]bool             // group identities that were agreed on, and that another succeeded
	spent      map[attest.Digest]int              // by key, the statements that count against its share
	made       int                                // statements
	live       int                                // keys, by group identity, whose newest statement approves
}

// approvedRoster is the roster that was approved last under a group's name. It does not
// depend on time, because a history has none: parties that approve a roster transfer the
// name to it, unless they withdraw before enough others approve.
type approvedRoster struct {
	Roster
	id    attest.Digest
	since int // the step at which it was
}

// addStatement returns a with a party's statement.
func (a Approved) addStatement(step Step) (Approved, error) {
	s, err := ParseStatement(step.Policy)
	if err != nil {
		return Approved{}, err
	}
	if len(step.Signatures) != 1 {
		return Approved{}, wire.Refuse(wire.NoQuorum, "statement: signatures", len(step.Signatures), "1, of the party")
	}
	switch {
	case s.TrustDomain != a.doc.TrustDomain:
		return Approved{}, wire.Refuse(wire.WrongDomain, "statement: trust domain", s.TrustDomain, a.doc.TrustDomain)
	case s.Genesis != a.genesis:
		return Approved{}, wire.Refuse(wire.WrongGenesis, "statement: genesis", s.Genesis, a.genesis)
	}
	p := a.GroupByID(s.Group)
	if p == nil {
		return Approved{}, wire.Refuse(wire.StaleRoster, "statement: group identity", s.Group, "that of a group of the policy in force")
	}
	if voice, ok := p.partyOfKey(s.Key); !ok || voice.Name != s.Party {
		return Approved{}, wire.Refuse(wire.NotOwner, "statement: party and key", s.Party+" "+s.Key.String(), "those of a party of the group")
	}
	h, err := p.Roster.verifyStatement(p.id, SignedStatement{step.Policy, step.Signatures[0]})
	if err != nil {
		return Approved{}, err
	}
	if err := p.newest.checkFollows(h); err != nil {
		return Approved{}, err
	}
	if err := a.checkStatementRoom(p, h); err != nil {
		return Approved{}, err
	}
	h.step = len(a.steps)
	a.records = a.records.withStatement(p, h)
	next := a.groups[p.Group.Name].copied()
	a.records = a.records.assign(h.step, next)
	return a.extended(a.doc, step, withEntry(a.groups, p.Group.Name, next)), nil
}

// copied returns a copy of the group and of its predecessor.
func (p *GroupState) copied() *GroupState {
	next := *p
	if p.Predecessor != nil {
		before := *p.Predecessor
		next.Predecessor = &before
	}
	return &next
}

// checkStatementRoom refuses, with "too-large", a statement for which the history has no
// room. Each approval reserves room for the withdrawal that may follow it. Of the rest
// each key may use an equal share.
func (a Approved) checkStatementRoom(p *GroupState, h verifiedStatement) error {
	l, last := a.records, p.newest.latest(h.Key)
	if p.EndsApproval(h.Statement) {
		return nil // its room was kept
	}
	need := 1
	if !h.Withdraws && !last.approves(last.GroupRoot) {
		need = 2
	}
	if got := l.made + l.live + need; got > wire.MaxStatements {
		return wire.Refuse(wire.TooLarge, "history: statements, and withdrawals that may follow", got, fmt.Sprint("at most ", wire.MaxStatements))
	}
	if err := a.checkStepRoom(need); err != nil {
		return err
	}
	if share := (wire.MaxStatements - l.made - l.live) / max(a.countKeys(), 1); l.spent[h.Key] > share {
		return wire.Refuse(wire.TooLarge, "history: statements of one key", l.spent[h.Key]+1, fmt.Sprint("at most ", share+1, " while others share the rest"))
	}
	return nil
}

// Filling warns if the history has more than four fifths of the steps, or of the
// statements, that fit into one.
func (a Approved) Filling() []policytoml.Warning {
	var all []policytoml.Warning
	warn := func(what string, got, most int) {
		if 5*got > 4*most {
			all = append(all, policytoml.Warning{Path: "history", Text: fmt.Sprintf("%d of %d %s, with a withdrawal for each approval in force", got, most, what)})
		}
	}
	warn("statements", a.records.made+a.records.live, wire.MaxStatements)
	warn("steps", len(a.steps)+a.records.live, wire.MaxHistory)
	return all
}

// checkStepRoom refuses, with "too-large", steps that would use the room reserved for
// withdrawals.
func (a Approved) checkStepRoom(steps int) error {
	if got := len(a.steps) + a.records.live + steps; got > wire.MaxHistory {
		return wire.Refuse(wire.TooLarge, "history: steps, and withdrawals that may follow", got, fmt.Sprint("at most ", wire.MaxHistory))
	}
	return nil
}

// countKeys returns how many keys may make statements about the groups of the policy in
// force.
func (a Approved) countKeys() int {
	keys := map[attest.Digest]bool{}
	for _, p := range a.groups {
		for ; p != nil; p = p.Predecessor {
			for _, party := range p.Roster.Parties {
				keys[party.Key] = true
			}
			if p.former != nil {
				for _, party := range p.former.Parties {
					keys[party.Key] = true
				}
			}
		}
	}
	return len(keys)
}

// withStatement returns the records with one more statement, which was checked.
func (l groupRecords) withStatement(p *GroupState, h verifiedStatement) groupRecords {
	if !p.EndsApproval(h.Statement) {
		l.spent = withEntry(l.spent, h.Key, l.spent[h.Key]+1)
	}
	was := l.statements[h.Group].latest(h.Key)
	newest := withEntry(l.statements[h.Group], h.Key, &was)
	newest.record(h)
	l.statements = withEntry(l.statements, h.Group, newest)
	l.made++
	if was.approves(was.GroupRoot) {
		l.live--
	}
	if now := newest.latest(h.Key); now.approves(now.GroupRoot) {
		l.live++
	}
	return l
}

// withEntry returns a copy of a map with a value at a key.
func withEntry[M ~map[K]V, K comparable, V any](m M, k K, v V) M {
	next := make(M, len(m)+1)
	maps.Copy(next, m)
	next[k] = v
	return next
}

// assign adds the statements of the records to groups, and records those that become
// approved at a step. No other goroutine has the groups yet.
func (l groupRecords) assign(step int, groups ...*GroupState) groupRecords {
	for _, p := range groups {
		for _, x := range []*GroupState{p.Predecessor, p} { // the older first
			if x == nil {
				continue
			}
			l.assignTo(x)
			last := l.last[x.Roster.Group]
			if last != nil && last.id == x.id || !x.becomesApproved() {
				continue
			}
			l.last = withEntry(l.last, x.Roster.Group, &approvedRoster{x.Roster, x.id, step})
			l.past = withEntry(l.past, x.id, false)
			if last != nil {
				l.past = withEntry(l.past, last.id, true)
			}
			l.assignTo(x)
		}
		if p.Predecessor != nil {
			l.assignTo(p.Predecessor) // p may have succeeded it
		}
	}
	return l
}

// assignTo sets the statements of a group, and the roster that was approved before it.
func (l groupRecords) assignTo(p *GroupState) {
	p.newest, p.former, p.succeeded = l.statements[p.id], l.last[p.Roster.Group], l.past[p.id]
	if p.former != nil && p.former.id == p.id {
		p.former = nil
	}
}

// becomesApproved reports whether the parties of the group, and those of the roster that
// was approved last, approve it under one root, whatever the time.
func (p *GroupState) becomesApproved() bool {
	agreed := p.Roster.approvedRoots(p.newest, 0)
	if p.former != nil {
		by := p.former.approvedRoots(p.newest, p.former.since)
		maps.DeleteFunc(agreed, func(root attest.Digest, _ bool) bool { return !by[root] })
	}
	return len(agreed) > 0
}
