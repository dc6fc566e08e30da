package groupcmd

import (
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
)

// TestGroupNearlyFull: so is it beside the state of a group.
func TestGroupNearlyFull(t *testing.T) {
	const sentence = "history: 8001 of 10000 steps"
	b, err := frame.WithSchema("group-status", struct {
		*groupView
		authorityclient.Filling
	}{new(groupView), authorityclient.Filling{Warnings: []string{sentence}}})
	if want := "\"warnings\": [\n    \"" + sentence; err != nil || !strings.Contains(string(b), want) {
		t.Errorf("got %s, %v, want %s", b, err, want)
	}
}
