package cohort

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// modelFile is the state model of the trusted channel.
const modelFile = "docs/spec/model/channel.pml"

// modelProperties are the assertions of the model, as its search names them.
var modelProperties = map[string]string{
	"P1": "!((pinned&&", "P2": "!((ranSafe&", "P3": "(runs<=1)", "P4": "(newest[u]<=1)",
	"P5": "(closedBy!=id[u])", "P6": "(a==b)", "P7": "!(((copies&held[u])",
}

// modelVariants are the model and what becomes of it when one protection is
// taken away: the assertion that then fails, "" where none may.
var modelVariants = []struct {
	macro, config, broken string
	quick                 bool // found within a second: run always
}{
	{"", "", "", false},
	{"", "SUCCESSOR", "", false},
	{"NO_CLOCK", "", "P2", false},
	{"NO_TARGET", "", "P3", false},
	{"NO_WINDOW", "", "P2", false},
	{"NO_NOT_AFTER", "", "P4", false},
	{"ONE_RING", "SUCCESSOR", "P1", false},
	{"NO_ERASE", "", "P7", false},
	{"FORGET_WINDOW", "", "P2", false},
	{"SAME_ID", "", "P5", false},
	{"FORGET_CLOSED", "", "P2", false},
	{"NO_HEADER", "", "P6", false},
	{"BELIEVE_HINTS", "", "P3", true},
}

// TestModel lets Spin search every state of the model, and of each variant
// without a protection, in which it must find the property that breaks.
func TestModel(t *testing.T) {
	for _, tool := range []string{"spin", "gcc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: no model was searched: %v", err)
		}
	}
	table := read(t, "docs/spec/model/README.md")
	for _, v := range modelVariants {
		name := strings.TrimPrefix(v.macro+" "+v.config, " ")
		if v.macro != "" && !bytes.Contains(table, fmt.Appendf(nil, "| `%s` | %s |", v.macro, v.broken)) {
			t.Errorf("README.md has no row of `%s` with %s", v.macro, v.broken)
		}
		t.Run(name, func(t *testing.T) {
			if !v.quick && (testing.Short() || os.Getenv("COHORT_FULL") == "") {
				t.Skip("SKIPPED: not searched; COHORT_FULL=1 and no -short do it")
			}
			if got := searchModel(t, v.macro, v.config); got != v.broken {
				t.Errorf("got %q broken, want %q", got, v.broken)
			}
		})
	}
}

// searchModel searches a variant and gives the name of the property that breaks.
func searchModel(t *testing.T, macros ...string) string {
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
	path, err := filepath.Abs(modelFile)
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
	for name, text := range modelProperties {
		if strings.Contains(out, "assertion violated "+text) || strings.Contains(out, "assertion violated  "+text) {
			return name
		}
	}
	if !strings.Contains(out, "errors: 0") || strings.Contains(out, "Search not completed") {
		t.Fatalf("the search was not complete:\n%s", out)
	}
	t.Log(strings.TrimSpace(out[strings.Index(out, "State-vector"):strings.Index(out, "Stats on memory")]))
	return ""
}
