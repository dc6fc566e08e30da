package policy

import (
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// TestConcerns: for which steps a unit of task scoring renews its certificate, a unit of task
// keys (which scoring calls), and a unit of a group's role.
func TestConcerns(t *testing.T) {
	h := newGroupHouse()
	before := h.heard(t, h.began(t, h.Text(t, policytest.Grouped()...)), "north", "south")
	unit := "cut_units = [\"" + strings.Repeat("a", 32) + "\"]\n"
	release := func(task, name, digit string) []string {
		line := "[task." + task + ".release.\"" + name + "\"]\n"
		return []string{line, "[task." + task + ".release.\"9\"]\nreference = [ { platform = \"soft\", program = \"sha256:" + strings.Repeat(digit, 64) + "\" } ]\n" + line}
	}
	scoring := Facts{Task: "scoring", Identity: before.id(t, "scoring", "2026.11"), Unit: wire.UnitID{1}, Platform: attest.Soft}
	keys := Facts{Task: "keys", Identity: before.id(t, "keys", "1.4"), Unit: wire.UnitID{1}, Platform: attest.Soft}
	holder := Facts{Task: "keys", Release: "1.4", Identity: before.GroupByName("trial").ID(), Group: "trial", Role: "holder",
		Party: sshsig.KeyDigest(h.Owners["north"].PublicKey()), Unit: wire.UnitID{1}, Platform: attest.Soft}
	for _, tt := range []struct {
		name                  string
		step                  func(testing.TB) Approved
		scoring, keys, holder bool
	}{
		{"nothing", edited(h, before), false, false, false},
		{"owners", edited(h, before, "quorum = 2\napprove", "quorum = 1\napprove"), false, false, false},
		{"how long silence may be", edited(h, before, "development  = true", "development  = true\nmax_silence = \"10m\""), false, false, false},
		{"its life", edited(h, before, `"30m"`, `"20m"`), true, false, false},
		{"its names", edited(h, before, `, "score.clinic.example"`, ""), true, false, false},
		{"what it calls", edited(h, before, "calls = [\"keys\"]\n", ""), true, false, false},
		{"its environment", edited(h, before, `LANG = "C"`, `LANG = "D"`), true, false, true}, // it is part of the group's floors
		{"another release of it", edited(h, before, release("scoring", "2026.10", "9")...), false, false, false},
		{"another release of the task it calls", edited(h, before, release("keys", "1.4", "9")...), true, false, false},
		{"one of its units", edited(h, before, "units = 50\n", "units = 50\n"+unit), true, false, true}, // that unit has the whole group's ring keys too
		{"a unit of the task it calls", edited(h, before, "[task.keys]\n", "[task.keys]\n"+unit), true, true, true},
		{"its release is retired", edited(h, before, "dynamic = true\n", "dynamic = true\nretired = true\n"), false, false, false},
		{"the other release is retired", edited(h, before, "[task.scoring.release.\"2026.10\"]\n", "[task.scoring.release.\"2026.10\"]\nretired = true\n"), false, false, false},
		{"code by its name", edited(h, before, strings.Repeat("2", 64), strings.Repeat("8", 64)), true, true, true}, // also the authority's code
		{"its platform", edited(h, before, "debug = true\n", ""), true, true, true},
		{"the authority", edited(h, before, `["chip:0123456789abcdef"]`, `"any"`), true, true, true},
		{"the group's quorum", edited(h, before, "quorum = 2\nuntil", "quorum = 3\nuntil"), false, false, true},
		{"the group's names", edited(h, before, `names = ["trial.clinic.example"]`, ""), false, false, true},
		{"the group", func(t testing.TB) Approved { return h.nextPolicy(t, before, h.Text(t)) }, false, false, true},
		{"a party of the group", func(t testing.TB) Approved { return h.says(t, before, "east", nil) }, false, false, true},
		{"a party that withdraws", func(t testing.TB) Approved { return h.says(t, before, "south", withdraws) }, false, false, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			after := tt.step(t)
			later := h.nextPolicy(t, after, after.Document().Source()) // concerns no unit
			for _, row := range []struct {
				name  string
				facts Facts
				want  bool
			}{{"scoring", scoring, tt.scoring}, {"keys", keys, tt.keys}, {"holder", holder, tt.holder}} {
				for _, a := range []Approved{after, later, mustReplay(t, later)} {
					if got := a.Concerns(before.PolicyHead(), row.facts); got != row.want {
						t.Errorf("%s, after %d steps: got %v, want %v", row.name, len(a.Steps())-len(before.Steps()), got, row.want)
					}
				}
				if later.Concerns(after.PolicyHead(), row.facts) || after.Concerns(after.PolicyHead(), row.facts) {
					t.Errorf("%s: a step that changed nothing concerns it", row.name)
				}
			}
		})
	}
	for name, since := range map[string]attest.Digest{"a head of another history": policytest.Digest("9"), "no head": {}} {
		if !before.Concerns(since, scoring) {
			t.Errorf("%s concerns nobody", name)
		}
	}
	if !(Approved{}).Concerns(before.PolicyHead(), scoring) {
		t.Error("no policy concerns nobody")
	}
}

// edited returns a with one more policy: the good one with the group, after edits.
func edited(h *house, a Approved, edits ...string) func(testing.TB) Approved {
	return func(t testing.TB) Approved { return h.nextPolicy(t, a, h.Text(t, policytest.Grouped(edits...)...)) }
}

// TestConcernsOfSharedRings: a cut of a release that continues another concerns units of both,
// because they share the ring keys of sessions by task name.
func TestConcernsOfSharedRings(t *testing.T) {
	h := newHouse()
	line := "[task.scoring.release.\"2026.11\"]\n"
	release := func(name, digit, continues string) string {
		return "[task.scoring.release.\"" + name + "\"]\n" + continues + "reference = [ { platform = \"soft\", program = \"sha256:" + strings.Repeat(digit, 64) + "\" } ]\n"
	}
	heir, stranger := release("next", "9", "continues = \"2026.11\"\n"), release("other", "8", "")
	before := h.began(t, h.Text(t, line, heir+stranger+line))
	facts := func(name string) Facts {
		return Facts{Task: "scoring", Identity: before.id(t, "scoring", name), Platform: attest.Soft}
	}
	for name, row := range map[string]struct {
		after                  Approved
		first, second, another bool
	}{
		"the heir goes":          {h.nextPolicy(t, before, h.Text(t, line, stranger+line)), true, true, false},
		"the first demands more": {h.nextPolicy(t, before, h.Text(t, line, heir+stranger+line, "dynamic = true\n", "")), true, true, false},
		"the stranger goes":      {h.nextPolicy(t, before, h.Text(t, line, heir+line)), false, false, true},
	} {
		for release, want := range map[string]bool{"2026.11": row.first, "next": row.second, "other": row.another} {
			if got := row.after.Concerns(before.PolicyHead(), facts(release)); got != want {
				t.Errorf("%s: of %s got %v, want %v", name, release, got, want)
			}
		}
	}
}

// TestConcernsAfterCutTakenBack: a cut concerns units with the old shared leaf, even if it was
// taken back before they received it.
func TestConcernsAfterCutTakenBack(t *testing.T) {
	h := newHouse()
	before := h.began(t, h.Text(t))
	cut := h.nextPolicy(t, before, h.Text(t, "units = 50\n", "units = 50\ncut_units = [\""+strings.Repeat("a", 32)+"\"]\n"))
	back := h.nextPolicy(t, cut, h.Text(t))
	facts := Facts{Task: "scoring", Identity: before.id(t, "scoring", "2026.11"), Platform: attest.Soft}
	if !back.Concerns(before.PolicyHead(), facts) {
		t.Error("a cut that was taken back does not concern who held the pair before it")
	}
	facts = Facts{Task: "keys", Identity: before.id(t, "keys", "1.4"), Platform: attest.Soft}
	if back.Concerns(before.PolicyHead(), facts) {
		t.Error("a cut of another task, taken back, concerns a task")
	}
}
