package cohort

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The state models in docs/spec/model.
const (
	modelChannel = "channel.pml"
	modelWindows = "windows.pml"
	modelHeads   = "heads.pml"
)

// modelProperties are the assertions of the models, as Spin prints them.
var modelProperties = map[string]string{
	"P1": "!((pinned&&", "P2": "!((ranSafe&", "P3": "(runs<=1)", "P4": "(time[u]<=1)",
	"P5": "(closedBy!=id[u])", "P6": "(a==b)", "P7": "!(((copies&held[u])",
	"W1": "(ran[a_]<=1)", "W2": "(runs<=1)", "W3": "!(said[a_])", "W3 ": "(ran[a_]==0)",
	"W4": "((taken[u_]==0)||", "W5": "!((closed[u_]&&",
	"H1": "!(cut[head[c_]])", "H2": "!((keptKeys[", "H3": "!((keptRings[",
	"H4": "( !((by0&&cut[head[1]]))&&", "H5": "((renewed<lastCut[",
	"H6": "cut[head[c_]]", "H6 ": "(renewed>=concern[head[0]])", "H7": "!(retired[steps])",
	"H8": "!(cut[steps])", "H9": "!(stray[c_])", "H10": "(concern[head[0]]>renewed)",
	"H11": "( !(cut[steps])||",
}

// modelVariants are the models and their variants without one protection. broken is the assertion
// that then fails, "" if none may.
var modelVariants = []struct {
	file, macro, config, broken string
	quick                       bool // found within a second, so it always runs
}{
	{modelChannel, "", "", "", false},
	{modelChannel, "", "SUCCESSOR", "", false},
	{modelChannel, "NO_CLOCK", "", "P2", false},
	{modelChannel, "NO_TARGET", "", "P3", false},
	{modelChannel, "NO_WINDOW", "", "P2", false},
	{modelChannel, "NO_NOT_AFTER", "", "P4", false},
	{modelChannel, "LATE_SAYS", "", "P3", false},
	{modelChannel, "ONE_RING", "SUCCESSOR", "P1", false},
	{modelChannel, "NO_ERASE", "", "P7", false},
	{modelChannel, "DROP_EARLY", "", "P2", false},
	{modelChannel, "FORGET_WINDOW", "", "P2", false},
	{modelChannel, "SAME_ID", "", "P5", false},
	{modelChannel, "FORGET_CLOSED", "", "P2", false},
	{modelChannel, "RECORD_EARLY", "", "P5", false},
	{modelChannel, "NO_HEADER", "", "P6", false},
	{modelChannel, "BELIEVE_HINTS", "", "P3", true},
	{modelWindows, "", "", "", false},
	{modelWindows, "", "WAITS", "", false},
	{modelWindows, "CLOCK_BACK", "ONLY_RUNS", "W1", true},
	{modelWindows, "STEP_APART", "ONLY_RUNS", "W1", false},
	{modelWindows, "DROP_EARLY", "", "W1", false},
	{modelWindows, "RAN_ONLY", "", "W3", false},
	{modelWindows, "TWO_COMPARISONS", "", "W1", false},
	{modelWindows, "COPY_REPLACES", "", "W1", false},
	{modelWindows, "RECORD_FREE", "ONLY_RUNS", "W1", false},
	{modelWindows, "RECORD_SHORT", "", "W5", false},
	{modelWindows, "FAR_AHEAD", "", "W4", false},
	{modelWindows, "NOT_BOUND", "", "W1", false},
	{modelWindows, "SAME_ID", "", "W1", false},
	{modelWindows, "LATE_SAYS", "", "W3", false},
	{modelWindows, "REPLAY_SAYS", "", "W3", false},
	{modelWindows, "HANDED_SAYS", "", "W3", false},
	{modelWindows, "TIME_SAYS", "", "W2", false},
	{modelWindows, "BELIEVE_HINTS", "", "W2", false},
	{modelHeads, "", "", "", false},
	{modelHeads, "", "GROUP", "", false},
	{modelHeads, "LEAF_HEAD", "", "H1", false},
	{modelHeads, "NO_CUT_IN_KEY", "", "H2", false},
	{modelHeads, "NO_CUT_CHECK", "", "H2", false},
	{modelHeads, "CUT_FORGOTTEN", "", "H2", false},
	{modelHeads, "SEALS_ON", "", "H3", true},
	{modelHeads, "NOT_CONCERNED", "", "H3", false},
	{modelHeads, "RINGS_KEPT", "", "H3", false},
	{modelHeads, "NEXT_KEPT", "", "H3", false},
	{modelHeads, "CARRIED_OVER", "", "H4", false},
	{modelHeads, "OPENED_AFTER", "", "H4", false},
	{modelHeads, "OPENER_ONCE", "", "H4", false},
	{modelHeads, "PREVIOUS_KEPT", "", "H5", false},
	{modelHeads, "RETIRE_CUTS", "", "H6", false},
	{modelHeads, "STOPS", "", "H6", false},
	{modelHeads, "RETIRED_RENEWS", "", "H7", false},
	{modelHeads, "STALE_ISSUE", "", "H8", false},
	{modelHeads, "HINT_ADOPTED", "", "H9", false},
	{modelHeads, "ALL_RENEW", "", "H10", false},
	{modelHeads, "NO_SILENCE", "GROUP", "H11", true},
	{modelHeads, "ARRIVAL_TIME", "GROUP", "H11", false},
}

// TestModel: Spin searches every state of the models and of each variant without a protection. It
// must find exactly the property that the variant breaks.
func TestModel(t *testing.T) {
	for _, tool := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: no model was searched: %v", err)
		}
	}
	table := read(t, "docs/spec/model/README.md")
	for _, v := range modelVariants {
		name := v.file + "/" + strings.TrimPrefix(v.macro+" "+v.config, " ")
		if v.macro != "" && !bytes.Contains(table, fmt.Appendf(nil, "| `%s` | %s |", v.macro, v.broken)) {
			t.Errorf("README.md has no row of `%s` with %s", v.macro, v.broken)
		}
		t.Run(name, func(t *testing.T) {
			if !v.quick && (testing.Short() || os.Getenv("COHORT_FULL") == "") {
				t.Skip("SKIPPED: not searched; COHORT_FULL=1 and no -short do it")
			}
			if got := searchModel(t, v.file, v.macro, v.config); got != v.broken {
				t.Errorf("got %q broken, want %q", got, v.broken)
			}
		})
	}
}

// searchModel searches a variant and returns the name of the property that breaks.
func searchModel(t *testing.T, file string, macros ...string) string {
	t.Helper()
	dir := t.TempDir()
	run := func(name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		return string(out)
	}
	path, err := filepath.Abs(filepath.Join("docs", "spec", "model", file))
	if err != nil {
		t.Fatal(err)
	}
	var args []string
	for _, m := range macros {
		if m != "" {
			args = append(args, "-D"+m)
		}
	}
	run("spin", append(args, "-a", path)...)
	run("gcc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DNOREDUCE", "-o", "pan", "pan.c")
	out := run("./pan", "-m1000000")
	letter := map[string]string{modelChannel: "P", modelWindows: "W", modelHeads: "H"}[file]
	for name, text := range modelProperties {
		if !strings.HasPrefix(name, letter) {
			continue
		}
		if strings.Contains(out, "assertion violated "+text) || strings.Contains(out, "assertion violated  "+text) {
			return strings.TrimSpace(name)
		}
	}
	if !strings.Contains(out, "errors: 0") || strings.Contains(out, "Search not completed") {
		t.Fatalf("the search was not complete:\n%s", out)
	}
	t.Log(strings.TrimSpace(out[strings.Index(out, "State-vector"):strings.Index(out, "Stats on memory")]))
	return ""
}

// named matches the mutants in the last cell of a table row.
var named = regexp.MustCompile("`([a-z0-9-]+)`")

// TestModelMutants: the mutants that the table names for the variants exist.
func TestModelMutants(t *testing.T) {
	there := make(map[string]bool)
	for _, m := range mutants(t) {
		there[m.name] = true
	}
	for _, file := range []string{"authority.md", "groups.md"} {
		found := 0
		for line := range strings.Lines(string(read(t, "docs/spec/model/"+file))) {
			cells := strings.Split(strings.TrimSpace(line), "|")
			if len(cells) < 3 {
				continue
			}
			for _, name := range named.FindAllStringSubmatch(cells[len(cells)-2], -1) {
				found++
				if !there[name[1]] {
					t.Errorf("%s names the mutant %s, which is not there", file, name[1])
				}
			}
		}
		if found < 5 {
			t.Errorf("%s names %d mutants, want those of its rows", file, found)
		}
	}
}
