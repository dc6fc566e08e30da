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
	b, err := withSchema("status", statusView{filling: f})
	if want := "\"warnings\": [\n    \"" + sentence; err != nil || !strings.Contains(string(b), want) {
		t.Errorf("got %s, %v, want %s", b, err, want)
	}
}

// TestGroupNearlyFull: so is it beside the state of a group.
func TestGroupNearlyFull(t *testing.T) {
	const sentence = "history: 8001 of 10000 steps"
	b, err := withSchema("group-status", struct {
		*groupView
		filling
	}{new(groupView), filling{[]string{sentence}}})
	if want := "\"warnings\": [\n    \"" + sentence; err != nil || !strings.Contains(string(b), want) {
		t.Errorf("got %s, %v, want %s", b, err, want)
	}
}
