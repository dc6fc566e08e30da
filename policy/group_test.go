package policy

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// trial is a group of the good policy's tasks.
const trial = `
[group.trial]
key_mode = "shared"
quorum = 2
until = 2026-12-20T00:00:00Z
names = ["trial.clinic.example"]
authority = { machines = ["chip:0123456789abcdef"], platform = { soft = { roots = [ "sha256:1111111111111111111111111111111111111111111111111111111111111111"] } }, reference = [ { platform = "soft", program = "@agent-1" } ] }
party = [ { name = "east", ssh = "EAST" }, { name = "north", ssh = "NORTH" }, { name = "south", ssh = "SOUTH" } ]
[group.trial.role]
holder = { members = [ { party = "north", task = "keys", release = "1.4" } ] }
scorer = { members = [ { party = "east", task = "scoring", release = "2026.10" }, { party = "south", task = "scoring", release = "2026.11" } ], calls = ["holder"] }
`

// newGroupHouse is a house whose policies have parties.
func newGroupHouse() *house {
	h := newHouse()
	for _, party := range []string{"east", "north", "south"} {
		h.owners[party] = fixed(party)
	}
	return h
}

// grouped are edits that add the group to the good policy, after edits.
func grouped(edits ...string) []string {
	return append([]string{"oneoff = true\n", "oneoff = true\n" + trial}, edits...)
}

// say is a party's statement about the group as a history has it.
func (h *house) say(t testing.TB, a Approved, party string, change func(*Statement)) Step {
	t.Helper()
	s, err := a.Pact("trial").Statement(KeyDigest(h.owners[party].PublicKey()), groupRoot)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&s)
	}
	return Step{s.Bytes(), h.sign(t, s.Namespace(), s.Bytes(), party)}
}

// groupRoot is the root that the tests' parties approve.
var groupRoot = digest("a")

// rooted is that of every pact.
func rooted(*Pact) attest.Digest { return groupRoot }

func withdraws(s *Statement) { s.Withdraws = true }

// heard is a with statements of parties.
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
	a := h.found(t, grouped()...)
	_, err := a.Pact("trial").Agreed(groupRoot, start)
	refused(t, err, wire.NoQuorum)
	a = h.heard(t, a, "north")
	_, err = a.Pact("trial").Agreed(groupRoot, start)
	refused(t, err, wire.NoQuorum)
	early := start.Add(time.Hour)
	a, err = a.Next(h.say(t, a, "south", func(s *Statement) { s.NotAfter = early }))
	if err != nil {
		t.Fatal(err)
	}
	if ends, err := a.Pact("trial").Agreed(groupRoot, start); err != nil || !ends.Equal(early) {
		t.Errorf("got end %v, %v, want the earlier of the two", ends, err)
	}
	_, err = a.Pact("trial").Agreed(groupRoot, early)
	refused(t, err, wire.NoQuorum)
	a = h.heard(t, a, "south")
	_, err = a.Pact("trial").Agreed(groupRoot, a.Pact("trial").Group.Until)
	refused(t, err, wire.Expired)
	withdrawn, err := a.Next(h.say(t, a, "north", withdraws))
	if err != nil {
		t.Fatal(err)
	}
	_, err = withdrawn.Pact("trial").Agreed(groupRoot, start)
	refused(t, err, wire.NoQuorum)
	if again := h.heard(t, withdrawn, "north"); len(again.Pact("trial").Agreement(groupRoot, start).Missing) != 1 {
		t.Errorf("got missing %v after north approved again", again.Pact("trial").Agreement(groupRoot, start).Missing)
	}
	replayed, err := Replay(a.Genesis(), a.Steps())
	if err != nil || replayed.Head() != a.Head() || replayed.Pact("trial").ID() != a.Pact("trial").ID() {
		t.Errorf("replaying: %v", err)
	}
}

func TestStatementRefusals(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, grouped()...), "north")
	by := func(signer string, ns Namespace) func(Step) Step {
		return func(s Step) Step { return Step{s.Policy, h.sign(t, ns, s.Policy, signer)} }
	}
	for _, tt := range []struct {
		name   string
		change func(*Statement)
		step   func(Step) Step
		want   attest.Reason
	}{
		{"another trust domain", func(s *Statement) { s.TrustDomain = "else.example" }, nil, wire.WrongDomain},
		{"another genesis", func(s *Statement) { s.Genesis = digest("9") }, nil, wire.WrongGenesis},
		{"another group", func(s *Statement) { s.Group = digest("9") }, nil, wire.StaleRoster},
		{"no party", func(s *Statement) { s.Party = "ana" }, by("ana", ForApprove), wire.NotOwner},
		{"an owner in a party's place", nil, by("ana", ForApprove), wire.NotOwner},
		{"a party in another's place", nil, by("south", ForApprove), wire.NotOwner},
		{"longer than the group", func(s *Statement) { s.NotAfter = s.NotAfter.Add(time.Second) }, nil, wire.Expired},
		{"the number before", func(s *Statement) { s.Number = 1 }, nil, wire.WrongSequence},
		{"signed as a withdrawal", nil, by("north", ForWithdraw), wire.BadSignature},
		{"signed as policy", nil, by("north", ForPolicy), wire.BadSignature},
		{"signed twice", nil, func(s Step) Step { return Step{s.Policy, append(s.Signatures, s.Signatures...)} }, wire.NoQuorum},
		{"unsigned", nil, func(s Step) Step { return Step{Policy: s.Policy} }, wire.NoQuorum},
		{"text behind", nil, func(s Step) Step {
			raw := append(slices.Clone(s.Policy), '\n')
			return Step{raw, h.sign(t, ForApprove, raw, "north")}
		}, wire.Malformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			signer := "north"
			s := h.say(t, a, signer, nil)
			if tt.change != nil {
				parsed, _ := ParseStatement(s.Policy)
				tt.change(&parsed)
				s = Step{parsed.Bytes(), h.sign(t, ForApprove, parsed.Bytes(), signer)}
			}
			if tt.step != nil {
				s = tt.step(s)
			}
			_, err := a.Next(s)
			refused(t, err, tt.want)
		})
	}
}

func TestGroupRefusals(t *testing.T) {
	h := newGroupHouse()
	for _, tt := range []struct{ name, old, new, rule string }{
		{"quorum of 0", "quorum = 2\nuntil", "quorum = 0\nuntil", "value"},
		{"quorum over the parties", "quorum = 2\nuntil", "quorum = 4\nuntil", "value"},
		{"no end", "until = 2026-12-20T00:00:00Z\n", "", "required key"},
		{"an end after 30 days", "2026-12-20", "2026-12-23", "term"},
		{"a party twice", `name = "north"`, `name = "east"`, "party twice"},
		{"one key under two parties", `"NORTH"`, `"SOUTH"`, "key twice"},
		{"parties out of order", `name = "east"`, `name = "west"`, "order"},
		{"parties alike", `name = "north"`, `name = "eas-t"`, "names alike"},
		{"roles alike", "holder = {", "sc0rer = { members = [ { party = \"north\", task = \"keys\", release = \"1.4\" } ] }\nholder = {", "names alike"},
		{"a member's party that is none", `{ party = "north", task`, `{ party = "ana", task`, "party"},
		{"a member's task that is none", `task = "keys"`, `task = "key"`, "task"},
		{"a member's release that is none", `release = "1.4"`, `release = "1.5"`, "release"},
		{"a member twice", `{ party = "south", task = "scoring", release = "2026.11" }`, `{ party = "east", task = "scoring", release = "2026.10" }`, "order"},
		{"members out of order", `{ party = "east", task = "scoring", release = "2026.10" }, { party = "south"`, `{ party = "south", task = "scoring", release = "2026.10" }, { party = "east"`, "order"},
		{"no member", `members = [ { party = "north", task = "keys", release = "1.4" } ]`, "members = []", "number of members"},
		{"a call to no role", `calls = ["holder"]`, `calls = ["hold"]`, "role"},
		{"calls out of order", `calls = ["holder"]`, `calls = ["scorer", "holder"]`, "order"},
		{"a call twice", `calls = ["holder"]`, `calls = ["holder", "holder"]`, "element twice"},
		{"a name of a task", `"trial.clinic.example"`, `"score.clinic.example"`, "name twice"},
		{"no key mode", "key_mode = \"shared\"\nquorum = 2\nuntil", "quorum = 2\nuntil", "required key"},
		{"a role in capitals", "holder = {", "Holder = {", "name"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := string(h.text(t, grouped()...))
			edited := h.text(t, grouped(tt.old, tt.new)...)
			if text == string(edited) {
				t.Fatal("nothing changed")
			}
			_, err := Parse(edited)
			faults, _ := err.(Faults)
			if !slices.ContainsFunc(faults, func(f Fault) bool { return strings.HasPrefix(f.Path, "group") && f.Rule == tt.rule }) {
				t.Errorf("got %v, want rule %q in the group", err, tt.rule)
			}
		})
	}
}

// TestCouldAdmitMember: before evidence is appraised, code of no member of the role
// is refused, code of another role's member too; whether the parties agreed is not
// asked.
func TestCouldAdmitMember(t *testing.T) {
	a := newGroupHouse().found(t, grouped()...)
	keys, scoring := measured(digest("9"), digest("4"), "-v"), measured(digest("2"), digest("5"))
	if err := a.CouldAdmitMember("trial", "holder", keys); err != nil {
		t.Error(err)
	}
	refused(t, a.CouldAdmitMember("trial", "holder", scoring), wire.NotMeasured)
	refused(t, a.CouldAdmitMember("trial", "clerk", keys), wire.NotFound)
	refused(t, a.CouldAdmitMember("trials", "holder", keys), wire.NotFound)
}
