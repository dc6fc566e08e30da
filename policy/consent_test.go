package policy

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

// keyed returns the key digests of owners of the house.
func (h *house) keyed(names ...string) (keys []attest.Digest) {
	for _, name := range names {
		keys = append(keys, sshsig.KeyDigest(h.Owners[name].PublicKey()))
	}
	return keys
}

// holding returns the appraisal result of the program in the role holder.
func holding(t testing.TB) attest.Result {
	t.Helper()
	return result(t, measured(policytest.Digest("9"), policytest.Digest("4"), "-v"))
}

// then returns a with a next policy, signed by two owners.
func (h *house) then(t testing.TB, a Approved, edits ...string) Approved {
	t.Helper()
	next, err := a.Next(h.step(t, h.next(t, a, edits...), "ana", "ben"))
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// says returns a with a statement of a party.
func (h *house) says(t testing.TB, a Approved, party string, change func(*Statement)) Approved {
	t.Helper()
	next, err := a.Next(h.say(t, a, party, change))
	if err != nil {
		t.Fatal(err)
	}
	return next
}

// loose are edits of a group to a quorum of one.
var loose = []string{"quorum = 2\nuntil", "quorum = 1\nuntil"}

// TestOwnConsent: a member's program is admitted only while its own party approves; approvals of
// a quorum of other parties are not enough.
func TestOwnConsent(t *testing.T) {
	h := newGroupHouse()
	a := h.says(t, h.found(t, policytest.Grouped(loose...)...), "south", nil)
	if _, err := a.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start); err != nil {
		t.Fatal(err)
	}
	north := Pins{Parties: h.keyed("north")}
	admit := func(a Approved, at time.Time) (Grant, error) {
		return a.AdmitMember("trial", "holder", holding(t), north, rooted, at)
	}
	early := policytest.Start.Add(time.Hour)
	approved := h.says(t, a, "north", nil)
	for _, tt := range []struct {
		name string
		a    Approved
		at   time.Time
		want attest.Reason
	}{
		{"its party said nothing", a, policytest.Start, wire.NoQuorum},
		{"its party approves another root", h.says(t, a, "north", func(s *Statement) { s.GroupRoot = policytest.Digest("b") }), policytest.Start, wire.NoQuorum},
		{"its party withdrew", h.says(t, approved, "north", withdraws), policytest.Start, wire.Withdrawn},
		{"its party withdrew, under another root", h.says(t, approved, "north", func(s *Statement) { s.Withdraws, s.GroupRoot = true, policytest.Digest("b") }), policytest.Start, wire.Withdrawn},
		{"its party signed two texts with one number", h.says(t, approved, "north", func(s *Statement) { s.Number, s.NotAfter = 1, early }), policytest.Start, wire.Withdrawn},
		{"its party's approval ended", h.says(t, a, "north", func(s *Statement) { s.NotAfter = early }), early, wire.Expired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := admit(tt.a, tt.at)
			policytest.Refused(t, err, tt.want)
		})
	}
	g, err := admit(approved, policytest.Start)
	if err != nil || g.Member != (policyfile.Member{Party: "north", Task: "keys", Release: "1.4"}) || g.Party != north.Parties[0] || !g.Ends.Equal(g.GroupState.Roster.Until) {
		t.Errorf("got member %v of party %v until %v, %v", g.Member, g.Party, g.Ends, err)
	}
	if g, err := admit(h.says(t, a, "north", func(s *Statement) { s.NotAfter = early }), policytest.Start); err != nil || !g.Ends.Equal(early) {
		t.Errorf("got end %v, %v, want that of the party's own approval", g.Ends, err)
	}
}

// TestPins: a unit is admitted as a member of the one party whose key it pins, whichever other
// parties list its program.
func TestPins(t *testing.T) {
	h := newGroupHouse()
	listed := append(slices.Clone(loose), `{ party = "north", task = "keys", release = "1.4" }`,
		`{ party = "east", task = "keys", release = "1.4" }, { party = "north", task = "keys", release = "1.4" }`)
	a := h.heard(t, h.found(t, policytest.Grouped(listed...)...), "north")
	id := a.GroupByName("trial").ID()
	for _, tt := range []struct {
		name string
		pins Pins
		want attest.Reason
	}{
		{"its party's key", Pins{Parties: h.keyed("north")}, ""},
		{"the key and one of nobody", Pins{Parties: append(h.keyed("north"), policytest.Digest("7"))}, ""},
		{"and the roster", Pins{Parties: h.keyed("north"), Roster: id}, ""},
		{"no pin", Pins{}, wire.NoParty},
		{"the roster alone", Pins{Roster: id}, wire.NoParty},
		{"another roster", Pins{Parties: h.keyed("north"), Roster: policytest.Digest("7")}, wire.StaleRoster},
		{"a party that brings another program", Pins{Parties: h.keyed("south")}, wire.NoParty},
		{"an owner", Pins{Parties: h.keyed("ana")}, wire.NoParty},
		{"a party that lists the program and does not approve", Pins{Parties: h.keyed("east")}, wire.NoQuorum},
		{"two parties that list the program", Pins{Parties: h.keyed("east", "north")}, wire.NoParty},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g, err := a.AdmitMember("trial", "holder", holding(t), tt.pins, rooted, policytest.Start)
			if tt.want != "" {
				policytest.Refused(t, err, tt.want)
				return
			}
			if err != nil || g.Member.Party != "north" {
				t.Errorf("got member %v, %v", g.Member, err)
			}
		})
	}
	// Without a pin it is refused even where only one party lists the program.
	scoring := result(t, measured(policytest.Digest("2"), policytest.Digest("6"), "--model", "m.json"))
	_, err := a.AdmitMember("trial", "scorer", scoring, Pins{}, rooted, policytest.Start)
	policytest.Refused(t, err, wire.NoParty)
	other := func(*GroupState) attest.Digest { return policytest.Digest("b") }
	_, err = a.AdmitMember("trial", "holder", holding(t), Pins{Parties: h.keyed("north")}, other, policytest.Start)
	policytest.Refused(t, err, wire.NoQuorum) // the party approves a different root than the authority's
}

// TestNumbers: statement numbers stay far below overflow, so a withdrawal can always have a
// higher number than the approval that it ends.
func TestNumbers(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north")
	for _, tt := range []struct {
		number uint64
		want   attest.Reason
	}{
		{0, wire.Malformed}, {1<<64 - 1, wire.Malformed}, {1 << 63, wire.Malformed}, {1<<63 - 1, wire.WrongSequence},
		{1 + 1<<32 + 1, wire.WrongSequence}, {1 + 1<<32, ""}, {2, ""},
	} {
		b, err := a.Next(h.say(t, a, "north", func(s *Statement) { s.Number, s.Withdraws = tt.number, true }))
		if tt.want != "" {
			policytest.Refused(t, err, tt.want)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Next(h.say(t, b, "north", func(s *Statement) { s.Number = 1 })) // replays the approval
		policytest.Refused(t, err, wire.WrongSequence)
		if again := h.says(t, b, "north", nil); len(again.GroupByName("trial").ApprovalStatus(groupRoot, policytest.Start).Approved) != 1 {
			t.Errorf("after a withdrawal with number %d the party approves no more", tt.number)
		}
	}
}

// TestSecondText: two texts with one number count as a withdrawal until a statement with a higher
// number, and affect no other party.
func TestSecondText(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
	shorter := func(s *Statement) { s.Number, s.NotAfter = 1, s.NotAfter.Add(-time.Second) }
	b := h.says(t, a, "north", shorter)
	agreement := b.GroupByName("trial").ApprovalStatus(groupRoot, policytest.Start)
	if !slices.Equal(agreement.Approved, []string{"south"}) || b.PolicyHead() == a.PolicyHead() {
		t.Errorf("got approvals of %v, want south's alone, in a step of its own", agreement.Approved)
	}
	// An offline check of both texts, in any order, gives the same result.
	p := b.GroupByName("trial")
	all := p.SignedStatements()
	for range all {
		all = append(all[1:], all[0])
		_, err := p.Roster.Check(groupRoot, all, []ssh.PublicKey{h.Owners["south"].PublicKey()}, policytest.Start)
		policytest.Refused(t, err, wire.NoQuorum)
	}
	if len(all) != 3 {
		t.Errorf("got %d statements, want both texts of north and south's", len(all))
	}
	for name, change := range map[string]func(*Statement){
		"the first again": func(s *Statement) { s.Number = 1 }, "the second again": shorter,
		"a third": func(s *Statement) { s.Number, s.NotAfter = 1, s.NotAfter.Add(-time.Minute) },
	} {
		_, err := b.Next(h.say(t, b, "north", change))
		if wire.ReasonOf(err) != wire.WrongSequence {
			t.Errorf("%s: got %v, want it refused", name, err)
		}
	}
	if _, err := h.heard(t, b, "north").GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start); err != nil {
		t.Errorf("after a higher number: %v", err)
	}
	withdrawn := h.says(t, a, "north", withdraws)
	_, err := withdrawn.Next(h.say(t, withdrawn, "north", func(s *Statement) { s.Number = 2 }))
	policytest.Refused(t, err, wire.WrongSequence) // after a withdrawal a second text changes nothing
}

// TestStatementsElsewhere: a statement counts only for its own roster and key, and at its own
// place in the history. Every other use of its bytes is refused.
func TestStatementsElsewhere(t *testing.T) {
	h := newGroupHouse()
	a := h.found(t, policytest.Grouped()...)
	audit := strings.NewReplacer("[group.trial", "[group.audit", `names = ["trial.clinic.example"]`, "").Replace(policytest.Trial)
	two := h.found(t, append(policytest.Grouped(), "[group.trial]\n", audit+"[group.trial]\n")...)
	step := h.say(t, a, "north", nil)
	parsed, err := ParseStatement(step.Policy)
	if err != nil {
		t.Fatal(err)
	}
	_, err = two.Next(step)
	policytest.Refused(t, err, wire.WrongGenesis)
	edited := func(change func(*Statement)) Step {
		s := parsed
		change(&s)
		return Step{s.Bytes(), step.Signatures}
	}
	for name, change := range map[string]func(*Statement){
		"renumbered": func(s *Statement) { s.Number++ }, "under another root": func(s *Statement) { s.GroupRoot = policytest.Digest("b") },
		"for longer": func(s *Statement) { s.NotAfter = s.NotAfter.Add(-time.Hour) },
	} {
		_, err := a.Next(edited(change))
		if wire.ReasonOf(err) != wire.BadSignature {
			t.Errorf("%s: got %v, want the signature refused", name, err)
		}
	}
	_, err = a.Next(edited(func(s *Statement) { s.Party, s.Key = "south", h.keyed("south")[0] }))
	policytest.Refused(t, err, wire.BadSignature)
	_, err = a.Next(edited(func(s *Statement) { s.Key = h.keyed("south")[0] }))
	policytest.Refused(t, err, wire.NotOwner)
	// A party's statement about one group does not count for another group.
	s, err := two.GroupByName("audit").Statement(h.keyed("north")[0], groupRoot)
	if err != nil {
		t.Fatal(err)
	}
	two, err = two.Next(Step{s.Bytes(), h.sign(t, sshsig.ForApprove, s.Bytes(), "north")})
	if err != nil {
		t.Fatal(err)
	}
	if got := two.GroupByName("trial").ApprovalStatus(groupRoot, policytest.Start).Approved; len(got) != 0 {
		t.Errorf("got approvals of the other group by %v", got)
	}
	s.Group = two.GroupByName("trial").ID()
	_, err = two.Next(Step{s.Bytes(), h.sign(t, sshsig.ForApprove, two.Steps()[1].Policy, "north")})
	policytest.Refused(t, err, wire.BadSignature)
}

// TestRoots: an approval counts only for the root that it names.
func TestRoots(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north")
	moved := policytest.Digest("b")
	other := func(s *Statement) { s.GroupRoot = moved }
	split := h.says(t, a, "south", other)
	p := split.GroupByName("trial")
	if roots := p.Roots(policytest.Start); len(roots) != 0 {
		t.Errorf("got roots %v though no two parties approve one", roots)
	}
	got := p.ApprovalStatus(groupRoot, policytest.Start)
	if !slices.Equal(got.OtherRoot, []string{"south"}) || !slices.Equal(got.Approved, []string{"north"}) {
		t.Errorf("got %+v, want south to approve another root", got)
	}
	_, err := p.ApprovedUntil(moved, policytest.Start)
	policytest.Refused(t, err, wire.NoQuorum)
	all := h.says(t, split, "north", other).GroupByName("trial")
	if roots := all.Roots(policytest.Start); len(roots) != 1 || roots[0] != moved || ApprovedRoot(policytest.Start)(all) != moved {
		t.Errorf("got roots %v, want the one that both approve", roots)
	}
	_, err = all.ApprovedUntil(groupRoot, policytest.Start)
	policytest.Refused(t, err, wire.NoQuorum) // north's earlier approval no longer counts
	one := h.found(t, policytest.Grouped(loose...)...)
	one = h.says(t, h.says(t, one, "north", nil), "south", other)
	want := []attest.Digest{groupRoot, moved}
	slices.SortFunc(want, func(x, y attest.Digest) int { return bytes.Compare(x[:], y[:]) })
	if roots := one.GroupByName("trial").Roots(policytest.Start); !slices.Equal(roots, want) {
		t.Errorf("got roots %v, want both, in order", roots)
	}
	if !ApprovedRoot(policytest.Start)(h.found(t, policytest.Grouped()...).GroupByName("trial")).IsZero() {
		t.Error("got a root that nobody approves")
	}
}
