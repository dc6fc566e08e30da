package cli

import (
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/cli/clitest"
)

// TestMeasureSaysWhatItLeavesOut: beside the line of policy, and in JSON.
func TestMeasureSaysWhatItLeavesOut(t *testing.T) {
	program := clitest.InterpreterHere(t)
	got := run(t, nil, append([]string{"measure", "--agent", "none", "--"}, program...)...)
	for _, want := range []string{"not measured: the code that sh runs", "not measured: the content of " + program[1]} {
		if got.exit != 0 || !strings.Contains(got.talk, want) {
			t.Errorf("exit %d, got %q, want %q in it", got.exit, got.talk, want)
		}
	}
	got = run(t, nil, append([]string{"measure", "--agent", "none", "-o", "json", "--"}, program...)...)
	if !strings.Contains(got.out, `"unmeasured"`) {
		t.Errorf("got %s, want it in JSON too", got.out)
	}
}
