package policy

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/crypto/ssh"
)

func TestRosterRoundTrip(t *testing.T) {
	r := newGroupHouse().found(t, policytest.Grouped()...).GroupByName("trial").Roster
	got, err := ParseRoster(r.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if got.ID() != r.ID() || !bytes.Equal(got.Bytes(), r.Bytes()) {
		t.Errorf("got %+v, want %+v", got, r)
	}
}

func TestRosterRefusals(t *testing.T) {
	good := newGroupHouse().found(t, policytest.Grouped()...).GroupByName("trial").Roster
	for name, edit := range map[string]func(*Roster){
		"quorum of 0":               func(r *Roster) { r.Quorum = 0 },
		"quorum over the parties":   func(r *Roster) { r.Quorum = 4 },
		"no key mode":               func(r *Roster) { r.KeyMode = "" },
		"no genesis":                func(r *Roster) { r.Genesis = attest.Digest{} },
		"a party twice":             func(r *Roster) { r.Parties[1].Name = "east" },
		"one key of two parties":    func(r *Roster) { r.Parties[1].Key = r.Parties[0].Key },
		"parties reordered":         func(r *Roster) { slices.Reverse(r.Parties) },
		"parties alike":             func(r *Roster) { r.Parties[1].Name = "ea5t-" },
		"roles reordered":           func(r *Roster) { slices.Reverse(r.Roles) },
		"no role":                   func(r *Roster) { r.Roles = nil },
		"members reordered":         func(r *Roster) { slices.Reverse(r.Roles[1].Members) },
		"a member twice":            func(r *Roster) { r.Roles[1].Members[1] = r.Roles[1].Members[0] },
		"a member of nobody":        func(r *Roster) { r.Roles[0].Members[0].Party = "west" },
		"a member without identity": func(r *Roster) { r.Roles[0].Members[0].Identity = attest.Digest{} },
		"no member":                 func(r *Roster) { r.Roles[0].Members = nil },
		"a call to nobody":          func(r *Roster) { r.Roles[1].Calls = []string{"west"} },
		"a call twice":              func(r *Roster) { r.Roles[1].Calls = []string{"holder", "holder"} },
		"a name with a space":       func(r *Roster) { r.Roles[0].Members[0].Task = "a b" },
	} {
		t.Run(name, func(t *testing.T) {
			r, err := ParseRoster(good.Bytes())
			if err != nil {
				t.Fatal(err)
			}
			edit(&r)
			_, err = ParseRoster(r.Bytes())
			policytest.Refused(t, err, wire.Malformed)
		})
	}
	_, err := ParseRoster(append(good.Bytes(), 0))
	policytest.Refused(t, err, wire.Malformed)
	_, err = ParseRoster(make([]byte, wire.MaxPolicy+1))
	policytest.Refused(t, err, wire.TooLarge)
}

// TestRosterOffline: a roster with its statements can be checked offline against the keys of
// trusted parties.
func TestRosterOffline(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
	p := a.GroupByName("trial")
	key := func(name string) ssh.PublicKey { return h.Owners[name].PublicKey() }
	other, _ := ParseRoster(p.Roster.Bytes())
	other.Quorum = 1
	withdrawn, err := a.Next(h.say(t, a, "north", withdraws))
	if err != nil {
		t.Fatal(err)
	}
	newest := withdrawn.GroupByName("trial").SignedStatements()
	for _, tt := range []struct {
		name   string
		roster Roster
		said   []SignedStatement
		keys   []ssh.PublicKey
		at     time.Time
		want   attest.Reason
	}{
		{"approved", p.Roster, p.SignedStatements(), []ssh.PublicKey{key("north"), key("south")}, policytest.Start, ""},
		{"no key", p.Roster, p.SignedStatements(), nil, policytest.Start, wire.NotOwner},
		{"a party that said nothing", p.Roster, p.SignedStatements(), []ssh.PublicKey{key("east")}, policytest.Start, wire.NotOwner},
		{"an owner", p.Roster, p.SignedStatements(), []ssh.PublicKey{key("ana")}, policytest.Start, wire.NotOwner},
		{"one approval", p.Roster, p.SignedStatements()[:1], []ssh.PublicKey{key("north")}, policytest.Start, wire.NoQuorum},
		{"one approval twice", p.Roster, []SignedStatement{p.SignedStatements()[0], p.SignedStatements()[0]}, []ssh.PublicKey{key("north")}, policytest.Start, wire.NoQuorum},
		{"a withdrawal beside the approval", p.Roster, append(p.SignedStatements(), newest...), []ssh.PublicKey{key("south")}, policytest.Start, wire.NoQuorum},
		{"another roster", other, p.SignedStatements(), []ssh.PublicKey{key("north")}, policytest.Start, wire.StaleRoster},
		{"after the end", p.Roster, p.SignedStatements(), []ssh.PublicKey{key("north")}, p.Group.Until, wire.Expired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.roster.Check(groupRoot, tt.said, tt.keys, tt.at)
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			policytest.Refused(t, err, tt.want)
		})
	}
}

// TestGroupIdentity: the group's identity changes with everything that the parties approve, and
// with nothing else.
func TestGroupIdentity(t *testing.T) {
	h := newGroupHouse()
	for _, tt := range []struct {
		name string
		edit []string
		same bool
	}{
		{"a comment", []string{"# Policy of a clinic.", "# Policy."}, true},
		{"a task outside", []string{"[task.scoring]\n", "[task.other]\nkey_mode = \"unit\"\n[task.other.release.\"1\"]\nreference = [ { platform = \"soft\", program = \"sha256:" + strings.Repeat("8", 64) + "\" } ]\n[task.scoring]\n"}, true},
		{"quorum", []string{"quorum = 2\nuntil", "quorum = 3\nuntil"}, false},
		{"call matrix", []string{`, calls = ["holder"]`, ""}, false},
		{"end", []string{"2026-12-20", "2026-12-19"}, false},
		{"a party's key", []string{`"NORTH"`, `"BEN"`}, false},
		{"a party", []string{`name = "east", ssh`, `name = "each", ssh`, `party = "east"`, `party = "each"`}, false},
		{"key mode", []string{"key_mode = \"shared\"\nquorum", "key_mode = \"unit\"\nquorum"}, false},
		{"a member's code", []string{"4444444444444444", "4444444444444445"}, false},
		{"a floor that rises", []string{"debug = true\n", ""}, true},
		{"a floor that falls", []string{`roots = ["sha256:1111`, `roots = ["sha256:` + strings.Repeat("8", 64) + `", "sha256:1111`}, false},
		{"a member that may load libraries", []string{`reference = [ { platform = "soft", agent = "@agent-1", program = "sha256:5555`, `dynamic = true` + "\n" + `reference = [ { platform = "soft", agent = "@agent-1", program = "sha256:5555`}, false},
		{"a member's environment", []string{`LANG = "C"`, `LANG = "C", TRACE = "x"`}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
			raw := h.next(t, a, policytest.Grouped(tt.edit...)...)
			next, err := a.Next(h.step(t, raw, "ana", "ben"))
			if err != nil {
				t.Fatal(err)
			}
			_, err = next.GroupByName("trial").ApprovedUntil(groupRoot, policytest.Start)
			if same := next.GroupByName("trial").ID() == a.GroupByName("trial").ID(); same != tt.same || (err == nil) != tt.same {
				t.Errorf("same identity: %v, agreed: %v, want %v", same, err, tt.same)
			}
		})
	}
}

// TestFloorsDoNotWalkDown: after a policy tightens a floor, it may loosen it again down to what
// the parties approved, and no further.
func TestFloorsDoNotWalkDown(t *testing.T) {
	h := newGroupHouse()
	a := h.found(t, policytest.Grouped()...)
	id := a.GroupByName("trial").ID()
	step := func(edit ...string) {
		t.Helper()
		d := a.Document()
		raw := h.Text(t, append([]string{"sequence     = 1\n", "sequence     = " + string(rune('1'+d.Sequence)) + "\n", `previous     = ""`, `previous     = "` + d.Digest().String() + `"`}, policytest.Grouped(edit...)...)...)
		var err error
		if a, err = a.Next(h.step(t, raw, "ana", "ben")); err != nil {
			t.Fatal(err)
		}
	}
	step("debug = true\n", "")
	step()
	if a.GroupByName("trial").ID() != id {
		t.Error("back at what was approved the group is another")
	}
	step("debug = true\n", "")
	step("debug = true\n", "", `roots = ["sha256:1111`, `roots = ["sha256:`+strings.Repeat("8", 64)+`", "sha256:1111`)
	if a.GroupByName("trial").ID() == id {
		t.Error("another root may vouch, and the group is the same")
	}
}

func TestGroupContinues(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.found(t, policytest.Grouped()...), "north", "south")
	old := a.GroupByName("trial").ID()
	smaller := []string{`{ party = "east", task = "scoring", release = "2026.10" }, `, ""}
	continuing := func(id attest.Digest, more ...string) []byte {
		return h.next(t, a, policytest.Grouped(append(append(smaller, more...), "[group.trial]\n", "[group.trial]\ncontinues = \""+id.String()+"\"\n")...)...)
	}
	raw := continuing(old)
	b, err := a.Next(h.step(t, raw, "ana", "ben"))
	if err != nil {
		t.Fatal(err)
	}
	p := b.GroupByName("trial")
	if p.ID() == old || p.Predecessor.ID() != old {
		t.Fatalf("got group %v before %v", p.ID(), p.Predecessor)
	}
	if inForce, err := p.InForce(rooted, policytest.Start); err != nil || inForce.ID() != old {
		t.Errorf("while nobody approved the new one: got %v, %v", inForce, err)
	}
	b = h.heard(t, b, "north", "south")
	if inForce, err := b.GroupByName("trial").InForce(rooted, policytest.Start); err != nil || inForce != b.GroupByName("trial") {
		t.Errorf("once it is approved: got %v, %v", inForce, err)
	}
	for name, raw := range map[string][]byte{
		"a group that never was": continuing(policytest.Digest("9")),
		"another key mode":       continuing(old, "key_mode = \"shared\"\nquorum", "key_mode = \"unit\"\nquorum"),
		"a floor that fell":      continuing(old, `roots = ["sha256:1111`, `roots = ["sha256:`+strings.Repeat("8", 64)+`", "sha256:1111`),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := a.Next(h.step(t, raw, "ana", "ben"))
			policytest.Refused(t, err, wire.BadPolicy)
			_, err = Propose(a, h.step(t, raw, "ana"), policytest.Start)
			policytest.Refused(t, err, wire.BadPolicy)
		})
	}
}

// TestProposalsSurviveStatements: a party's statement does not end a pending proposal of the
// owners.
func TestProposalsSurviveStatements(t *testing.T) {
	h := newGroupHouse()
	a := h.found(t, policytest.Grouped()...)
	p, err := Propose(a, h.step(t, h.next(t, a, policytest.Grouped("debug = true\n", "")...), "ana"), policytest.Start)
	if err != nil {
		t.Fatal(err)
	}
	a = h.heard(t, a, "north")
	if got := p.State(a, policytest.Start); got != Pending {
		t.Fatalf("got state %q, want %q", got, Pending)
	}
	if p, err = p.AddSignature(a, h.sign(t, sshsig.ForPolicy, p.record.Policy, "ben")[0], policytest.Start); err != nil {
		t.Fatal(err)
	}
	next, err := a.Next(p.NextStep())
	if err != nil {
		t.Fatal(err)
	}
	if got := p.State(next, policytest.Start); got != Adopted {
		t.Errorf("got state %q, want %q", got, Adopted)
	}
	if _, err := Reopen(next, p.Record()); err != nil {
		t.Errorf("reopening: %v", err)
	}
}

func FuzzParseRoster(f *testing.F) {
	f.Add(newGroupHouse().found(f, policytest.Grouped()...).GroupByName("trial").Roster.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRoster(b)
		if err == nil && !bytes.Equal(r.Bytes(), b) {
			t.Errorf("another encoding of %+v", r)
		}
	})
}

func FuzzParseStatement(f *testing.F) {
	s := Statement{TrustDomain: "clinic.example", Genesis: policytest.Digest("1"), Group: policytest.Digest("2"), GroupRoot: policytest.Digest("3"), Party: "north", Key: policytest.Digest("4"), Number: 1, NotAfter: policytest.Start}
	f.Add(s.Bytes())
	s.Withdraws = true
	f.Add(s.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseStatement(b)
		if err == nil && !bytes.Equal(s.Bytes(), b) {
			t.Errorf("another encoding of %+v", s)
		}
	})
}
