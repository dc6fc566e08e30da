package policy

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/policy/policytest"
)

// TestCutVectors applies policies that follow cuts/first.toml. Their first line states whether
// the step is a cut for release 1 of task keys, and on which platforms earlier unit leaves are
// refused.
func TestCutVectors(t *testing.T) {
	if *policytest.Update {
		writeCutVectors(t)
	}
	h := newHouse()
	first := h.began(t, []byte(policytest.ReadVector(t, "cuts", "first.toml")))
	for _, path := range policytest.Files(t, "cuts/after-*.toml") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			text := policytest.ReadVector(t, "cuts", filepath.Base(path))
			a, err := first.Next(h.step(t, []byte(text), "ana"))
			if err != nil {
				t.Fatal(err)
			}
			want, _, _ := strings.Cut(text, "\n")
			if got := cutLine(t, first, a); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// cutLine returns the first line of the vector of a step.
func cutLine(t testing.TB, before, after Approved) string {
	t.Helper()
	var refused []string
	for p, unit := range hardwareUnits(t, before) {
		if after.CutOff(unit, policytest.Start) != nil {
			refused = append(refused, string(p))
		}
	}
	slices.Sort(refused)
	cut := after.LastCut(before.id(t, "keys", "1"), "") == after.PolicyHead()
	return fmt.Sprintf("# expect: cut %v, refused %s", cut, strings.Join(append(refused, "end"), " "))
}

func writeCutVectors(t *testing.T) {
	h := newHouse()
	first := policytest.IronText(t)
	policytest.WriteVector(t, string(first), "cuts", "first.toml")
	before := h.began(t, first)
	for _, tt := range hardwareCuts {
		raw := h.nextPolicy(t, before, policytest.IronText(t, tt.edits...)).Document().Source()
		var refused []string
		for _, p := range tt.cuts {
			refused = append(refused, string(p))
		}
		slices.Sort(refused)
		// The comment line changes the file's digest, but no later policy names this one as
		// previous.
		line := fmt.Sprintf("# expect: cut %v, refused %s\n", tt.isCut, strings.Join(append(refused, "end"), " "))
		policytest.WriteVector(t, line+string(raw), "cuts", "after-"+strings.ReplaceAll(strings.ReplaceAll(tt.name, " ", "-"), ",", "")+".toml")
	}
}
