package cli

import (
	"strings"
	"testing"
)

// TestNearlyFull: a history that is nearly full is warned of in a line of its own, and as
// a list for programs.
func TestNearlyFull(t *testing.T) {
	const sentence = "history: 8001 of 10000 steps"
	f := filling{[]string{sentence}}
	if got := (statusView{filling: f}).String(); !strings.Contains(got, "\nWARNING: "+sentence+"\n") {
		t.Errorf("status has no warning:\n%s", got)
	}
	for name, v := range map[string]any{
		"status": statusView{filling: f},
		"group-status": struct {
			*groupView
			filling
		}{new(groupView), f},
	} {
		b, err := withSchema(name, v)
		if want := "\"warnings\": [\n    \"" + sentence; err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: got %s, %v, want %s", name, b, err, want)
		}
	}
}
