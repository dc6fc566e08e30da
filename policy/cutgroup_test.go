package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// TestCutOfGroups: for which roles of the group trial a step is a cut, and whether units of the
// two roles that were admitted before it are refused.
func TestCutOfGroups(t *testing.T) {
	h := newGroupHouse()
	before := h.heard(t, h.began(t, h.Text(t, policytest.Grouped()...)), "north", "south", "east")
	policy := func(edits ...string) func(testing.TB, Approved) Approved {
		return func(t testing.TB, a Approved) Approved {
			return h.nextPolicy(t, a, h.Text(t, policytest.Grouped(edits...)...))
		}
	}
	says := func(party string, change func(*Statement)) func(testing.TB, Approved) Approved {
		return func(t testing.TB, a Approved) Approved { return h.says(t, a, party, change) }
	}
	unit := "cut_units = [\"01000000000000000000000000000000\"]\n"
	for _, tt := range []struct {
		name           string
		step           func(testing.TB, Approved) Approved
		holder, scorer bool // a cut for the shared leaf of the role
		holderUnit     attest.Reason
		scorerUnit     attest.Reason
	}{
		{"nothing", policy(), false, false, "", ""},
		{"a platform root added", policy(`roots = ["sha256:1`, `roots = ["sha256:`+strings.Repeat("8", 64)+`", "sha256:1`), true, true, wire.Withdrawn, wire.Withdrawn}, // changes the roster
		{"a platform rule raised", policy("debug = true\n", ""), true, true, wire.CutOff, wire.CutOff},
		{"a unit of one role", policy("[task.keys]\n", "[task.keys]\n"+unit), true, false, wire.CutOff, ""},
		{"a unit of the other role", policy("units = 50\n", "units = 50\n"+unit), false, true, "", wire.CutOff},
		{"a release of the task that is no member's", policy("[task.keys.release.\"1.4\"]\n", "[task.keys.release.\"1.3\"]\nreference = [ { platform = \"soft\", program = \"sha256:"+strings.Repeat("9", 64)+"\" } ]\n[task.keys.release.\"1.4\"]\n"), false, false, "", ""},
		{"the member's code", policy(strings.Repeat("4", 64), strings.Repeat("8", 64)), true, true, wire.Withdrawn, wire.Withdrawn},
		{"a retired member", policy("[task.keys.release.\"1.4\"]\n", "[task.keys.release.\"1.4\"]\nretired = true\n"), false, false, "", ""},
		{"the group", func(t testing.TB, a Approved) Approved { return h.nextPolicy(t, a, h.Text(t)) }, true, true, wire.Withdrawn, wire.Withdrawn},
		{"another quorum", policy("quorum = 2\nuntil", "quorum = 3\nuntil"), true, true, wire.Withdrawn, wire.Withdrawn},
		{"a party approves again", says("north", nil), false, false, "", ""},
		{"a party approves for less long", says("north", func(s *Statement) { s.NotAfter = policytest.Start.Add(time.Hour) }), true, true, "", ""},
		{"a member's party withdraws", says("north", withdraws), true, true, wire.Withdrawn, ""},
		{"another member's party withdraws", says("east", withdraws), true, true, "", ""},
		{"a party approves another root", says("south", func(s *Statement) { s.GroupRoot = policytest.Digest("9") }), true, true, "", wire.NoQuorum},
	} {
		t.Run(tt.name, func(t *testing.T) {
			group := before.GroupByName("trial")
			after := tt.step(t, before)
			unit := func(role, task, release, party string) Facts {
				return Facts{Task: task, Release: release, Identity: group.ID(), Group: "trial", Role: role, Root: groupRoot,
					Party: sshsig.KeyDigest(h.Owners[party].PublicKey()), Unit: wire.UnitID{1}, Platform: attest.Soft, Head: before.PolicyHead()}
			}
			for _, row := range []struct {
				role string
				cut  bool
				unit Facts
				want attest.Reason
			}{
				{"holder", tt.holder, unit("holder", "keys", "1.4", "north"), tt.holderUnit},
				{"scorer", tt.scorer, unit("scorer", "scoring", "2026.11", "south"), tt.scorerUnit},
			} {
				if got := after.LastCut(group.ID(), row.role) == after.PolicyHead(); got != row.cut {
					t.Errorf("%s: got a cut %v, want %v", row.role, got, row.cut)
				}
				if err := before.CutOff(row.unit, policytest.Start); err != nil {
					t.Fatalf("%s, before: %v", row.role, err)
				}
				if err := after.CutOff(row.unit, policytest.Start); wire.ReasonOf(err) != row.want && !(err == nil && row.want == "") {
					t.Errorf("%s: got %v, want reason %q", row.role, err, row.want)
				}
				pair := Facts{Identity: group.ID(), Group: "trial", Role: row.role, Root: groupRoot, Shared: true}
				if err := before.CutOff(pair, policytest.Start); err != nil {
					t.Fatalf("pair of %s, before: %v", row.role, err)
				}
				if err := after.CutOff(pair, policytest.Start); (err != nil) != row.cut {
					t.Errorf("pair of %s: got %v, want refused %v", row.role, err, row.cut)
				}
			}
		})
	}
}

// TestCutOfMembers: a leaf that names a member which the roster does not have, or no member, is
// refused.
func TestCutOfMembers(t *testing.T) {
	h := newGroupHouse()
	a := h.heard(t, h.began(t, h.Text(t, policytest.Grouped()...)), "north", "south", "east")
	good := Facts{Task: "scoring", Release: "2026.11", Identity: a.GroupByName("trial").ID(), Group: "trial", Role: "scorer", Root: groupRoot,
		Party: sshsig.KeyDigest(h.Owners["south"].PublicKey()), Unit: wire.UnitID{1}, Platform: attest.Soft, Head: a.PolicyHead()}
	if err := a.CutOff(good, policytest.Start); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		edit func(*Facts)
		want attest.Reason
	}{
		{"another party that approves", func(f *Facts) { f.Party = sshsig.KeyDigest(h.Owners["east"].PublicKey()) }, wire.CutOff},
		{"a key that is no party's", func(f *Facts) { f.Party = policytest.Digest("9") }, wire.NoParty},
		{"no party", func(f *Facts) { f.Party = attest.Digest{} }, wire.NoParty},
		{"another release", func(f *Facts) { f.Release = "2026.10" }, wire.CutOff},
		{"another task", func(f *Facts) { f.Task = "keys" }, wire.CutOff},
		{"another role", func(f *Facts) { f.Role = "holder" }, wire.CutOff},
		{"another root", func(f *Facts) { f.Root = policytest.Digest("9") }, wire.NoQuorum},
		{"no root", func(f *Facts) { f.Root = attest.Digest{} }, wire.NoQuorum},
		{"another group's name", func(f *Facts) { f.Group = "audit" }, wire.Withdrawn},
		{"another platform", func(f *Facts) { f.Platform = attest.SNP }, wire.CutOff},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := good
			tt.edit(&f)
			policytest.Refused(t, a.CutOff(f, policytest.Start), tt.want)
		})
	}
	policytest.Refused(t, a.CutOff(good, a.GroupByName("trial").Group.Until), wire.Expired)
}
