package authority

import (
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestGroupFaults: a policy whose group breaks a rule is refused when it is proposed, even with
// all owners' signatures, and changes nothing.
func TestGroupFaults(t *testing.T) {
	w := grouped(t)
	a := w.agreed()
	head := a.inForce().approved.PolicyHead()
	scorer := `scorer = { members = [ { party = "south", task = "scoring", release = "2026.11" } ] }`
	for _, tt := range []struct{ name, old, new string }{
		{"quorum of 0", "quorum = 2\nuntil", "quorum = 0\nuntil"},
		{"quorum over the parties", "quorum = 2\nuntil", "quorum = 3\nuntil"},
		{"no end", "until = 2026-12-20T00:00:00Z\n", ""},
		{"an end after 30 days", "until = 2026-12-20", "until = 2027-12-20"},
		{"a party twice", `name = "south"`, `name = "north"`},
		{"one key under two parties", w.Keys["south"].AuthorizedKey(), w.Keys["north"].AuthorizedKey()},
		{"parties reordered", `name = "north"`, `name = "west"`},
		{"parties alike", `name = "south"`, `name = "n0rth"`},
		{"roles alike", scorer, scorer + "\n" + strings.Replace(scorer, "scorer", "5corer", 1)},
		{"a role twice", scorer, scorer + "\n" + scorer},
		{"a member of no party", `party = "south"`, `party = "ana"`},
		{"a member twice", `release = "2026.11" } ]`, `release = "2026.11" }, { party = "south", task = "scoring", release = "2026.11" } ]`},
		{"a call twice", `calls = ["scorer"]`, `calls = ["scorer", "scorer"]`},
		{"a call to no role", `calls = ["scorer"]`, `calls = ["scoring"]`},
		{"a capital", "scorer = {", "Scorer = {"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			step := w.SignPolicy(w.NextText(a.inForce().approved, tt.old, tt.new), w.Owners...)
			_, err := a.history.Propose(t.Context(), api.ProposeRequest{Policy: step.Policy, Signatures: step.Signatures})
			testworld.Refused(t, err, wire.BadPolicy)
		})
	}
	if got := a.inForce().approved.PolicyHead(); got != head {
		t.Errorf("got head %v, want %v as before", got, head)
	}
	if _, err := w.holder().enrol(direct{a}); err != nil {
		t.Errorf("a member after the refusals: %v", err)
	}
}

// TestOwnersChangeAGroup: the owners alone change the group that the parties approved. That makes
// a different group, which issues no certificates: the parties' statements about the old group do
// not count for it, and cannot be replayed.
func TestOwnersChangeAGroup(t *testing.T) {
	for name, edit := range map[string][]string{
		"quorum":               {"quorum = 2\nuntil", "quorum = 1\nuntil"},
		"call matrix":          {`, calls = ["scorer"]`, ""},
		"a later end":          {"2026-12-20", "2026-12-21"},
		"an earlier end":       {"2026-12-20", "2026-12-19"},
		"a party's key":        {"SOUTH", "ANA"},
		"a floor":              {`roots = ["`, `roots = ["sha256:` + strings.Repeat("8", 64) + `", "`},
		"unmeasured libraries": {"env = { LANG", "dynamic = true\nenv = { LANG"},
	} {
		t.Run(name, func(t *testing.T) {
			w := grouped(t, `delay = "1h"`, `delay = "0s"`)
			a := w.agreed()
			approvals := signedStatements(a.inForce().approved.GroupByName("trial"))
			former := a.inForce().approved.GroupByName("trial").ID()
			for i := range edit {
				edit[i] = strings.NewReplacer("SOUTH", w.Keys["south"].AuthorizedKey(), "ANA", w.Keys["ana"].AuthorizedKey()).Replace(edit[i])
			}
			w.change(a, edit...)

			if got := a.inForce().approved.GroupByName("trial").ID(); got == former {
				t.Errorf("the group is the same")
			}
			_, err := w.holder().enrol(direct{a})
			testworld.Refused(t, err, wire.NoQuorum)
			for _, signed := range approvals {
				_, err := a.addStatement(t.Context(), "trial", signed)
				testworld.Refused(t, err, wire.StaleRoster)
			}
		})
	}
}
