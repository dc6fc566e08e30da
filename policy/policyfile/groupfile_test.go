package policyfile

import (
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

func TestGroupRefusals(t *testing.T) {
	h := policytest.NewGroupHouse()
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
			text := string(h.Text(t, policytest.Grouped()...))
			edited := h.Text(t, policytest.Grouped(tt.old, tt.new)...)
			if text == string(edited) {
				t.Fatal("nothing changed")
			}
			_, err := Parse(edited)
			faults, _ := err.(policytoml.Faults)
			if !slices.ContainsFunc(faults, func(f policytoml.Fault) bool { return strings.HasPrefix(f.Path, "group") && f.Rule == tt.rule }) {
				t.Errorf("got %v, want rule %q in the group", err, tt.rule)
			}
		})
	}
}
