package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// diffRows are all kinds of changes: those that tighten, and then at least one
// for every key that a file may hold, each of which loosens.
var diffRows = []struct {
	name     string
	from, to []string // edits of the good policy
	want     []string
}{
	{"a comment", nil, []string{"# Policy of a clinic.", "# Reviewed."}, nil},
	{"order of a list", nil, []string{`"scoring.clinic.example", "score.clinic.example"`, `"score.clinic.example", "scoring.clinic.example"`}, nil},
	{"another spelling", nil, []string{`calls = ["keys"]`, `calls = ['keys',]`}, nil},

	{"release removed", nil, []string{"[task.scoring.release.\"2026.10\"]\n" + `reference = [ { platform = "soft", agent = "@agent-1", program = "sha256:5555555555555555555555555555555555555555555555555555555555555555" } ]`, "", "continues = \"2026.10\"\n", ""},
		[]string{`- task.scoring.release."2026.10" = { reference = [{ agent = "@agent-1", platform = "soft", program = "sha256:` + strings.Repeat("5", 64) + `" }] } (tightens)`,
			`- task.scoring.release."2026.11".continues = "2026.10" (tightens)`}},
	{"reference value removed", nil, []string{`  { platform = "soft", agent = "@agent-1", program = "sha256:` + strings.Repeat("7", 64) + "\" },\n", ""},
		[]string{`- task.scoring.release."2026.11".reference = { agent = "@agent-1", platform = "soft", program = "sha256:` + strings.Repeat("7", 64) + `" } (tightens)`}},
	{"root removed", []string{`roots = ["sha256:` + strings.Repeat("1", 64) + `"]`, `roots = ["sha256:` + strings.Repeat("1", 64) + `", "sha256:` + strings.Repeat("a", 64) + `"]`}, nil,
		[]string{`- platform.soft.roots = "sha256:` + strings.Repeat("a", 64) + `" (tightens)`}},
	{"debug removed", nil, []string{"debug = true\n", ""}, []string{"- platform.soft.debug = true (tightens)"}},
	{"debug off", nil, []string{"debug = true\n", "debug = false\n"}, []string{"~ platform.soft.debug = false, was true (tightens)"}},
	{"dynamic off", nil, []string{"dynamic = true", "dynamic = false"}, []string{`~ task.scoring.release."2026.11".dynamic = false, was true (tightens)`}},
	{"oneoff removed", nil, []string{"oneoff = true\n", ""}, []string{`- task.scoring.release."2026.11".oneoff = true (tightens)`}},
	{"continues removed", nil, []string{"continues = \"2026.10\"\n", ""}, []string{`- task.scoring.release."2026.11".continues = "2026.10" (tightens)`}},
	{"call removed", nil, []string{`calls = ["keys"]`, `calls = []`}, []string{`- task.scoring.calls = "keys" (tightens)`}},
	{"calls removed", nil, []string{"calls = [\"keys\"]\n", ""}, []string{`- task.scoring.calls = "keys" (tightens)`}},
	{"name removed", nil, []string{`, "score.clinic.example"`, ""}, []string{`- task.scoring.names = "score.clinic.example" (tightens)`}},
	{"shorter life", nil, []string{`"30m"`, `"1790s"`}, []string{`~ task.scoring.life = "1790s", was "30m" (tightens)`}},

	{"longer life", nil, []string{`"30m"`, `"1801s"`}, []string{`~ task.scoring.life = "1801s", was "30m" (loosens)`}},
	{"life removed", nil, []string{"life = \"30m\"\n", ""}, []string{`- task.scoring.life = "30m" (loosens)`}},
	{"env added", nil, []string{"oneoff = true", "oneoff = true\n[task.scoring.release.\"2026.10\".env]\nTZ = \"UTC\""}, []string{`+ task.scoring.release."2026.10".env.TZ = "UTC" (loosens)`}},
	{"dynamic on", []string{"dynamic = true\n", ""}, nil, []string{`+ task.scoring.release."2026.11".dynamic = true (loosens)`}},
	{"debug on", []string{"debug = true\n", ""}, nil, []string{"+ platform.soft.debug = true (loosens)"}},
	{"root added", nil, []string{`roots = [`, `roots = ["sha256:` + strings.Repeat("a", 64) + `", `}, []string{`+ platform.soft.roots = "sha256:` + strings.Repeat("a", 64) + `" (loosens)`}},
	{"another program", nil, []string{strings.Repeat("4", 64), strings.Repeat("8", 64)}, []string{
		`- task.keys.release."1.4".reference = { any = ["agent", "args"], platform = "soft", program = "sha256:` + strings.Repeat("4", 64) + `" } (tightens)`,
		`+ task.keys.release."1.4".reference = { any = ["agent", "args"], platform = "soft", program = "sha256:` + strings.Repeat("8", 64) + `" } (loosens)`}},
	{"another argument", nil, []string{`"m.json"`, `"n.json"`}, []string{
		`- task.scoring.release."2026.11".reference = { agent = "@agent-1", args = ["--model", "m.json"], platform = "soft", program = "sha256:` + strings.Repeat("6", 64) + `" } (tightens)`,
		`+ task.scoring.release."2026.11".reference = { agent = "@agent-1", args = ["--model", "n.json"], platform = "soft", program = "sha256:` + strings.Repeat("6", 64) + `" } (loosens)`}},
	{"measured digest", nil, []string{strings.Repeat("2", 64), strings.Repeat("8", 64)}, []string{`~ measured.agent-1.sha256 = "` + strings.Repeat("8", 64) + `", was "` + strings.Repeat("2", 64) + `" (loosens)`}},
	{"authority root", nil, []string{strings.Repeat("3", 64), strings.Repeat("8", 64)}, []string{`~ authority.root = "sha256:` + strings.Repeat("8", 64) + `", was "sha256:` + strings.Repeat("3", 64) + `" (loosens)`}},
	{"name added", nil, []string{`["scoring.`, `["a.clinic.example", "scoring.`}, []string{`+ task.scoring.names = "a.clinic.example" (loosens)`}},
	{"call added", nil, []string{`calls = ["keys"]`, `calls = ["keys", "scoring"]`}, []string{`+ task.scoring.calls = "scoring" (loosens)`}},
	{"key mode", nil, []string{`"shared"`, `"unit"`}, []string{`~ task.scoring.key_mode = "unit", was "shared" (loosens)`}},
	{"fewer units", nil, []string{"units = 50", "units = 5"}, []string{"~ task.scoring.units = 5, was 50 (loosens)"}},
	{"env changed", nil, []string{`LANG = "C"`, `LANG = "D"`}, []string{`~ task.scoring.release."2026.11".env.LANG = "D", was "C" (loosens)`}},
	{"env removed", nil, []string{"env = { LANG = \"C\" }\n", ""}, []string{`- task.scoring.release."2026.11".env = { LANG = "C" } (loosens)`}},
	{"higher quorum", nil, []string{"quorum = 2", "quorum = 3"}, []string{"~ owners.quorum = 3, was 2 (loosens)"}},
	{"approve_within", nil, []string{`"168h"`, `"100h"`}, []string{`~ owners.approve_within = "100h", was "168h" (loosens)`}},
	{"longer delay", nil, []string{`delay = "1h"`, `delay = "2h"`}, []string{`~ owners.delay = "2h", was "1h" (loosens)`}},
	{"owner removed", nil, []string{"  { name = \"eva\", ssh = \"EVA\" },\n", ""}, []string{`- owners.keys = { name = "eva", ssh = "EVA" } (loosens)`}},
}

func TestDiff(t *testing.T) {
	h := newHouse()
	eva := keyLine(h.owners["eva"].PublicKey())
	for _, row := range diffRows {
		t.Run(row.name, func(t *testing.T) {
			old, next := mustParse(t, h.text(t, row.from...)), mustParse(t, h.text(t, row.to...))
			var got []string
			for _, c := range Diff(old, next) {
				got = append(got, strings.ReplaceAll(c.String(), eva, "EVA"))
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("got changes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(row.want, "\n"))
			}
			if got, want := Loosens(old, next), strings.Contains(fmt.Sprint(row.want), "(loosens)"); got != want {
				t.Errorf("got loosens %v, want %v", got, want)
			}
		})
	}
}

func TestDiffOfWholeTables(t *testing.T) {
	h := newHouse()
	whole := mustParse(t, h.text(t))
	scoring := good[strings.Index(good, "[task.scoring]"):]
	less := mustParse(t, h.text(t, scoring, ""))

	changes := Diff(whole, less)
	if len(changes) != 1 || changes[0].Path != "task.scoring" || changes[0].Loosens {
		t.Errorf("got %v, want one change that tightens: the task is gone", changes)
	}
	changes = Diff(less, whole)
	if len(changes) < 12 || slices.ContainsFunc(changes, func(c Change) bool { return !c.Loosens || !strings.HasPrefix(c.Path, "task.scoring.") }) {
		t.Errorf("got %v, want each value of the new task, loosening", changes)
	}
	if changes := Diff(nil, whole); len(changes) < 25 || !Loosens(nil, whole) {
		t.Errorf("got %d changes from nothing, want every value", len(changes))
	}
}

// TestMixedChangeLoosens takes a release away and lengthens a life.
func TestMixedChangeLoosens(t *testing.T) {
	h := newHouse()
	old, next := mustParse(t, h.text(t)), mustParse(t, h.text(t, `"30m"`, `"40m"`, "oneoff = true\n", ""))
	if !Loosens(old, next) {
		t.Error("got tightening, want loosening")
	}
}

func TestDiffLeavesPlaceOut(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	if got := Diff(a.Document(), mustParse(t, h.next(t, a, "09:00:00Z", "10:00:00Z"))); len(got) > 0 {
		t.Errorf("got %v, want no change", got)
	}
}
