package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
)

// taken returns edits by which owners try to take over a group: they add their own party, which
// alone is a quorum.
func taken(more ...string) []string {
	return policytest.Grouped(append([]string{
		"quorum = 2\nuntil", "quorum = 1\nuntil", `{ name = "south", ssh = "SOUTH" }`, `{ name = "south", ssh = "SOUTH" }, { name = "west", ssh = "WEST" }`,
		`{ party = "east", task = "scoring"`, `{ party = "west", task = "scoring"`,
		`{ party = "west", task = "scoring", release = "2026.10" }, { party = "south", task = "scoring", release = "2026.11" }`,
		`{ party = "south", task = "scoring", release = "2026.11" }, { party = "west", task = "scoring", release = "2026.10" }`,
	}, more...)...)
}

// TestTakeover: owners cannot replace a roster that the parties approved, however they write the
// new one. The former parties must approve it too.
func TestTakeover(t *testing.T) {
	h := newGroupHouse()
	h.Owners["west"] = policytest.Fixed("west")
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
	old := a.GroupByName("trial").ID()
	for name, then := range map[string]func() Approved{
		"with continues": func() Approved {
			return h.then(t, a, taken("[group.trial]\n", "[group.trial]\ncontinues = \""+old.String()+"\"\n")...)
		},
		"without": func() Approved { return h.then(t, a, taken()...) },
		"after the group left the policy": func() Approved {
			return h.then(t, h.then(t, h.then(t, a)), taken()...)
		},
		"after another that nobody agreed on": func() Approved {
			return h.then(t, h.then(t, a, policytest.Grouped("quorum = 2\nuntil", "quorum = 3\nuntil")...), taken()...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := h.says(t, then(), "west", nil)
			p := b.GroupByName("trial")
			_, err := p.ApprovedUntil(groupRoot, policytest.Start)
			policytest.Refused(t, err, wire.NoQuorum)
			if got := p.ApprovalStatus(groupRoot, policytest.Start); got.Former == nil || got.Former.Quorum != 2 || !slices.Equal(got.Approved, []string{"west"}) || !got.Ends.IsZero() {
				t.Errorf("got %+v, want the former quorum of 2 to be missing", got)
			}
			if len(p.Roots(policytest.Start)) != 0 {
				t.Error("it has a root")
			}
			inForce, err := p.InForce(rooted, policytest.Start)
			if p.Predecessor != nil && (err != nil || inForce.ID() != old) {
				t.Errorf("got %v, %v in force, want the group that goes on", inForce, err)
			}
			// One former party is not enough, and neither are both with two different roots. Both
			// with one root are the quorum that the former roster demands.
			b = h.says(t, b, "south", nil)
			_, err = b.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start)
			policytest.Refused(t, err, wire.NoQuorum)
			split := h.says(t, b, "north", func(s *Statement) { s.GroupRoot = policytest.Digest("b") })
			for _, root := range []attest.Digest{groupRoot, policytest.Digest("b")} {
				_, err = split.GroupByName("trial").ApprovedUntil(root, policytest.Start)
				policytest.Refused(t, err, wire.NoQuorum)
			}
			withdrawn := h.says(t, h.says(t, b, "south", withdraws), "north", nil)
			_, err = withdrawn.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start)
			policytest.Refused(t, err, wire.NoQuorum)
			b = h.says(t, b, "north", nil)
			if _, err := b.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start); err != nil {
				t.Errorf("with the approvals of the former parties: %v", err)
			}
			if before := b.GroupByName("trial").Predecessor; before != nil {
				_, err := before.ApprovedUntil(groupRoot, policytest.Start)
				policytest.Refused(t, err, wire.Withdrawn) // it has a successor
			}
		})
	}
}

// TestFirstRoster: a roster needs no former parties if no roster of its name was approved before.
func TestFirstRoster(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north")
	b := h.heard(t, h.then(t, a, policytest.Grouped(loose...)...), "east")
	if _, err := b.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start); err != nil {
		t.Error(err)
	}
	// The statement that completes a quorum counts however early it expires: the name is handed
	// over at once, and the roster stays approved as long as the approvals last.
	short := func(s *Statement) { s.NotAfter = policytest.Start.Add(time.Hour) }
	c := h.says(t, h.says(t, h.then(t, b, policytest.Grouped()...), "south", short), "east", short)
	p := c.GroupByName("trial")
	if p.former != nil {
		t.Errorf("got %v demanded of a roster that its parties and the former agreed on", p.former.id)
	}
	_, err := p.ApprovedUntil(groupRoot, policytest.Start.Add(time.Hour))
	policytest.Refused(t, err, wire.NoQuorum)
}

// TestSucceededComesBack: the owners restore a roster that has a successor. It needs new
// approvals of the successor's parties; their earlier approvals do not count.
func TestSucceededComesBack(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
	old := a.GroupByName("trial").ID()
	b := h.heard(t, h.then(t, a, policytest.Grouped("quorum = 2\nuntil", "quorum = 3\nuntil")...), "east", "north", "south")
	if _, err := b.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start); err != nil {
		t.Fatal(err)
	}
	c := h.then(t, b, policytest.Grouped()...)
	p := c.GroupByName("trial")
	if p.ID() != old {
		t.Fatal("the same text is another group")
	}
	if got := p.ApprovalStatus(groupRoot, policytest.Start); len(got.Approved) != 2 || len(got.Former.Approved) != 0 {
		t.Errorf("got %+v, want what parties said before to stand, and to be no word on the succession", got)
	}
	_, err := p.ApprovedUntil(groupRoot, policytest.Start)
	policytest.Refused(t, err, wire.Withdrawn)
	_, err = h.heard(t, c, "north", "south").GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start)
	policytest.Refused(t, err, wire.Withdrawn) // the successor's quorum includes east
	if _, err = h.heard(t, c, "north", "south", "east").GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start); err != nil {
		t.Error(err)
	}
}

// TestPartyChangesKey: the party's old key approves the successor, then only its new key counts.
func TestPartyChangesKey(t *testing.T) {
	h := newGroupHouse()
	h.Owners["heir"] = policytest.Fixed("north's next key")
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
	b := h.then(t, a, policytest.Grouped(`"NORTH"`, `"HEIR"`)...)
	b = h.heard(t, b, "heir", "south")
	_, err := b.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start)
	policytest.Refused(t, err, wire.NoQuorum)
	s, err := b.GroupByName("trial").Statement(h.keyed("north")[0], groupRoot)
	if err != nil || s.Party != "north" || s.Number != 1 {
		t.Fatalf("got statement %+v, %v, want the first of the old key about this group", s, err)
	}
	b = h.heard(t, b, "north")
	if _, err := b.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start); err != nil {
		t.Error(err)
	}
	if all := b.GroupByName("trial").SignedStatements(); len(all) != 2 {
		t.Errorf("got %d statements beside the roster, want those of its own parties", len(all))
	}
	_, err = b.GroupByName("trial").Statement(h.keyed("north")[0], groupRoot)
	policytest.Refused(t, err, wire.NotOwner) // the old key no longer counts
	_, err = b.Next(Step{Policy: a.Steps()[1].Policy, Signatures: a.Steps()[1].Signatures})
	policytest.Refused(t, err, wire.StaleRoster)
	pins := Pins{Parties: h.keyed("north", "heir")}
	if g, err := b.AdmitMember("trial", "holder", holding(t), pins, rooted, policytest.Start); err != nil || g.Party != pins.Parties[1] {
		t.Errorf("got party %v, %v, want the new key", g.Party, err)
	}
}

// TestStatementsOutliveTheGroup: a group is removed from the policy and added again. Its parties'
// statements still count, so no old statement can be replayed.
func TestStatementsOutliveTheGroup(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
	approval := a.Steps()[1]
	a = h.says(t, a, "north", withdraws)
	gone := h.then(t, a)
	if gone.GroupByName("trial") != nil {
		t.Fatal("the group is still there")
	}
	_, err := gone.Next(approval)
	policytest.Refused(t, err, wire.StaleRoster)
	back := h.then(t, gone, policytest.Grouped()...)
	_, err = back.Next(approval)
	policytest.Refused(t, err, wire.WrongSequence)
	p := back.GroupByName("trial")
	if p.ID() != a.GroupByName("trial").ID() || !slices.Equal(p.ApprovalStatus(groupRoot, policytest.Start).Approved, []string{"south"}) {
		t.Errorf("got %+v", p.ApprovalStatus(groupRoot, policytest.Start))
	}
	_, err = p.Consents(groupRoot, h.keyed("north")[0], policytest.Start)
	policytest.Refused(t, err, wire.Withdrawn)
	replayed, err := Replay(back.Genesis(), back.Steps())
	if err != nil || !slices.Equal(replayed.GroupByName("trial").ApprovalStatus(groupRoot, policytest.Start).Approved, []string{"south"}) {
		t.Errorf("replaying: %v", err)
	}
}

// TestStatementsAreShared: one party cannot use up the statements that the history can hold, and
// every approval can still be withdrawn.
func TestStatementsAreShared(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "south")
	a.records.made = wire.MaxStatements - 400 // as if earlier statements had been made
	flood := func(a Approved) (Approved, int, error) {
		for n := 0; ; n++ {
			next, err := a.Next(h.say(t, a, "north", nil))
			if err != nil {
				return a, n, err
			}
			a = next
		}
	}
	full, n, err := flood(a)
	policytest.Refused(t, err, wire.TooLarge)
	if n < 50 || n > 150 || !strings.Contains(err.Error(), "one key") {
		t.Errorf("got %d statements of one of three parties, then %v, want about a third of those left", n, err)
	}
	withdrawn := h.says(t, full, "north", withdraws)
	_, err = withdrawn.Next(h.say(t, withdrawn, "north", nil))
	policytest.Refused(t, err, wire.TooLarge)
	if got := h.heard(t, withdrawn, "south", "east", "south", "east").GroupByName("trial").ApprovalStatus(groupRoot, policytest.Start).Approved; len(got) != 2 {
		t.Errorf("got approvals of %v after the flood", got)
	}
}

// TestStatementsEnd: at the bounds of statements and of steps, each approval can still be
// withdrawn. Statements beyond the bounds are refused when they are made, so every accepted
// history can be replayed.
func TestStatementsEnd(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
	a.records.made = wire.MaxStatements - 2
	_, err := a.Next(h.say(t, a, "east", nil))
	policytest.Refused(t, err, wire.TooLarge)
	_, err = a.Next(h.say(t, a, "east", withdraws))
	policytest.Refused(t, err, wire.TooLarge)
	_, err = a.Next(h.say(t, a, "north", nil))
	policytest.Refused(t, err, wire.TooLarge)
	b := h.says(t, h.says(t, a, "north", withdraws), "south", func(s *Statement) { s.Number, s.NotAfter = 1, policytest.Start }) // a second text with one number
	if b.records.made != wire.MaxStatements || b.records.live != 0 {
		t.Errorf("got %d statements and %d approvals", b.records.made, b.records.live)
	}

	if got := a.Filling(); len(got) != 1 || !strings.Contains(got[0].Text, "8000 of 8000 statements") {
		t.Errorf("got warnings %v of a history full of statements", got)
	}
	a.records.made-- // room for one statement, but not for an approval and its withdrawal
	_, err = a.Next(h.say(t, a, "east", nil))
	policytest.Refused(t, err, wire.TooLarge)
	h.says(t, a, "east", withdraws)

	full := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
	full.steps = append(full.steps, make([]Step, wire.MaxHistory-2-len(full.steps))...)
	_, err = full.Next(h.step(t, h.next(t, full, policytest.Grouped()...), "ana", "ben"))
	policytest.Refused(t, err, wire.TooLarge)
	_, err = full.Next(h.say(t, full, "east", nil))
	policytest.Refused(t, err, wire.TooLarge)
	h.says(t, h.says(t, full, "north", withdraws), "south", withdraws)
	if got := full.Filling(); len(got) != 1 || !strings.Contains(got[0].Text, "10000 of 10000 steps") {
		t.Errorf("got warnings %v of a full history", got)
	}
	empty := h.found(t, policytest.Grouped()...)
	if got := empty.Filling(); len(got) != 0 {
		t.Errorf("got warnings %v of a new history", got)
	}
	empty.steps = append(empty.steps, make([]Step, wire.MaxHistory-1-len(empty.steps))...)
	h.then(t, empty, policytest.Grouped()...)
	empty.steps = append(empty.steps, Step{})
	_, err = empty.Next(h.step(t, h.next(t, empty, policytest.Grouped()...), "ana", "ben"))
	policytest.Refused(t, err, wire.TooLarge)
}
