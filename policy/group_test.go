package policy

import (
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// say returns a party's statement about the group in a history.
func (h *house) say(t testing.TB, a Approved, party string, change func(*Statement)) Step {
	t.Helper()
	s, err := a.GroupByName("trial").Statement(sshsig.KeyDigest(h.Owners[party].PublicKey()), groupRoot)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&s)
	}
	return Step{s.Bytes(), h.sign(t, s.Namespace(), s.Bytes(), party)}
}

// groupRoot is the root that the tests' parties approve.
var groupRoot = policytest.Digest("a")

// rooted returns groupRoot for every group.
func rooted(*GroupState) attest.Digest { return groupRoot }

func withdraws(s *Statement) { s.Withdraws = true }

// heard returns a with approvals of parties.
func (h *house) heard(t testing.TB, a Approved, parties ...string) Approved {
	t.Helper()
	for _, party := range parties {
		var err error
		if a, err = a.Next(h.say(t, a, party, nil)); err != nil {
			t.Fatal(err)
		}
	}
	return a
}

func TestPartiesAgree(t *testing.T) {
	h := newGroupHouse()
	a := h.found(t, policytest.Grouped()...)
	_, err := a.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start)
	policytest.Refused(t, err, wire.NoQuorum)
	a = h.heard(t, a, "north")
	_, err = a.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start)
	policytest.Refused(t, err, wire.NoQuorum)
	early := policytest.Start.Add(time.Hour)
	a, err = a.Next(h.say(t, a, "south", func(s *Statement) { s.NotAfter = early }))
	if err != nil {
		t.Fatal(err)
	}
	if ends, err := a.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start); err != nil || !ends.Equal(early) {
		t.Errorf("got end %v, %v, want the earlier of the two", ends, err)
	}
	_, err = a.GroupByName("trial").ApprovedUntil(groupRoot, early)
	policytest.Refused(t, err, wire.NoQuorum)
	a = h.heard(t, a, "south")
	_, err = a.GroupByName("trial").ApprovedUntil(groupRoot, a.GroupByName("trial").Group.Until)
	policytest.Refused(t, err, wire.Expired)
	withdrawn, err := a.Next(h.say(t, a, "north", withdraws))
	if err != nil {
		t.Fatal(err)
	}
	_, err = withdrawn.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start)
	policytest.Refused(t, err, wire.NoQuorum)
	if again := h.heard(t, withdrawn, "north"); len(again.GroupByName("trial").ApprovalStatus(groupRoot, policytest.Start).Missing) != 1 {
		t.Errorf("got missing %v after north approved again", again.GroupByName("trial").ApprovalStatus(groupRoot, policytest.Start).Missing)
	}
	replayed, err := Replay(a.Genesis(), a.Steps())
	if err != nil || replayed.PolicyHead() != a.PolicyHead() || replayed.GroupByName("trial").ID() != a.GroupByName("trial").ID() {
		t.Errorf("replaying: %v", err)
	}
}

func TestStatementRefusals(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north")
	by := func(signer string, ns sshsig.Namespace) func(Step) Step {
		return func(s Step) Step { return Step{s.Policy, h.sign(t, ns, s.Policy, signer)} }
	}
	for _, tt := range []struct {
		name   string
		change func(*Statement)
		step   func(Step) Step
		want   attest.Reason
	}{
		{"another trust domain", func(s *Statement) { s.TrustDomain = "else.example" }, nil, wire.WrongDomain},
		{"another genesis", func(s *Statement) { s.Genesis = policytest.Digest("9") }, nil, wire.WrongGenesis},
		{"another group", func(s *Statement) { s.Group = policytest.Digest("9") }, nil, wire.StaleRoster},
		{"no party", func(s *Statement) { s.Party = "ana" }, by("ana", sshsig.ForApprove), wire.NotOwner},
		{"an owner in a party's place", nil, by("ana", sshsig.ForApprove), wire.NotOwner},
		{"a party in another's place", nil, by("south", sshsig.ForApprove), wire.NotOwner},
		{"longer than the group", func(s *Statement) { s.NotAfter = s.NotAfter.Add(time.Second) }, nil, wire.Expired},
		{"the number before", func(s *Statement) { s.Number = 1 }, nil, wire.WrongSequence},
		{"signed as a withdrawal", nil, by("north", sshsig.ForWithdraw), wire.BadSignature},
		{"signed as policy", nil, by("north", sshsig.ForPolicy), wire.BadSignature},
		{"signed twice", nil, func(s Step) Step { return Step{s.Policy, append(s.Signatures, s.Signatures...)} }, wire.NoQuorum},
		{"unsigned", nil, func(s Step) Step { return Step{Policy: s.Policy} }, wire.NoQuorum},
		{"text behind", nil, func(s Step) Step {
			raw := append(slices.Clone(s.Policy), '\n')
			return Step{raw, h.sign(t, sshsig.ForApprove, raw, "north")}
		}, wire.Malformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			signer := "north"
			s := h.say(t, a, signer, nil)
			if tt.change != nil {
				parsed, _ := ParseStatement(s.Policy)
				tt.change(&parsed)
				s = Step{parsed.Bytes(), h.sign(t, sshsig.ForApprove, parsed.Bytes(), signer)}
			}
			if tt.step != nil {
				s = tt.step(s)
			}
			_, err := a.Next(s)
			policytest.Refused(t, err, tt.want)
		})
	}
}

// TestCouldAdmitMember: before appraisal, code of no member of the role is refused, even if it is
// a member of another role. The parties' approvals do not matter yet.
func TestCouldAdmitMember(t *testing.T) {
	a := newGroupHouse().found(t, policytest.Grouped()...)
	keys, scoring := measured(policytest.Digest("9"), policytest.Digest("4"), "-v"), measured(policytest.Digest("2"), policytest.Digest("5"))
	if err := a.CouldAdmitMember("trial", "holder", keys); err != nil {
		t.Error(err)
	}
	policytest.Refused(t, a.CouldAdmitMember("trial", "holder", scoring), wire.NotMeasured)
	policytest.Refused(t, a.CouldAdmitMember("trial", "clerk", keys), wire.NotFound)
	policytest.Refused(t, a.CouldAdmitMember("trials", "holder", keys), wire.NotFound)
}
