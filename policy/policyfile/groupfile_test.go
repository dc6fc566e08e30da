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

// TestRosterIsASCII: what a roster contains of a policy has one encoding in printable ASCII, which
// depends on no version of Unicode: the second text has a letter, an emoji and a code point that is
// not assigned yet.
func TestRosterIsASCII(t *testing.T) {
	h := policytest.NewGroupHouse()
	text := string(h.Text(t, policytest.Grouped(
		`env = { LANG = "C" }`, `env = { LANG = "C", TEXT = 'a"\b' , NEWER = "\t\u00e9\U0001f600\u0378\u202e\u007f" }`,
		`reference = [ { platform = "soft", program = "@agent-1" } ] }`, `reference = [ { platform = "soft", program = "@agent-1", args = ["é", "\u0378"] } ] }`)...))
	d := mustParse(t, []byte(text))
	group := d.Groups["trial"]
	wantFloors := `{ platform = { soft = { debug = true, roots = ["` + policytest.Digest("1").String() + `"] } }, task = { ` +
		`keys = { release = { "1.4" = {  } } }, scoring = { release = { "2026.10" = {  }, "2026.11" = { dynamic = true, ` +
		`env = { LANG = "C", NEWER = "\t\u00e9\U0001f600\u0378\u202e\x7f", TEXT = "a\"\\b" }, oneoff = true } } } } }`
	if got := d.FloorsOf(group).String(); got != wantFloors {
		t.Errorf("got floors\n%s, want\n%s", got, wantFloors)
	}
	if got, want := group.Authority.String(), `args = ["\u00e9", "\u0378"], `; !strings.Contains(got, want) {
		t.Errorf("got %s, want %s in it", got, want)
	}
	for _, line := range []string{wantFloors, group.Authority.String()} {
		if at := strings.IndexFunc(line, func(r rune) bool { return r < ' ' || r > '~' }); at >= 0 {
			t.Errorf("got %q at %d, want printable ASCII", line[at:], at)
		}
	}
}
