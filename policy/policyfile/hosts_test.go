package policyfile

import (
	"slices"
	"testing"
)

func TestHosts(t *testing.T) {
	d := &Document{
		Tasks:  map[string]*Task{"scoring": {Names: []string{"scoring.clinic.example"}}, "bare": {}},
		Groups: map[string]*Group{"trial": {Names: []string{"trial.clinic.example"}}},
	}
	for _, row := range []struct {
		task, group string
		want        []string
	}{
		{"scoring", "", []string{"scoring", "scoring.clinic.example"}},
		{"bare", "", []string{"bare"}},
		{"", "trial", []string{"trial", "trial.clinic.example"}},
		{"scoring", "trial", []string{"trial", "trial.clinic.example"}},
		{"gone", "", nil},
		{"scoring", "gone", nil},
		{"", "", nil},
	} {
		if got := d.Hosts(row.task, row.group); !slices.Equal(got, row.want) {
			t.Errorf("task %q, group %q: got %v, want %v", row.task, row.group, got, row.want)
		}
	}
}

func TestServes(t *testing.T) {
	d := &Document{Tasks: map[string]*Task{"scoring": {Names: []string{"scoring.clinic.example"}}}}
	for authority, want := range map[string]bool{
		"scoring": true, "SCORING:8443": true, "scoring.clinic.example": true, "Scoring.Clinic.Example:443": true,
		"": false, ":443": false, "scoring.clinic.example.evil.example": false, "evil.example": false, "scoring@evil.example": false,
		"user@scoring": false, "scoring:port": false, "127.0.0.1": false, "[::1]:443": false,
	} {
		if got := d.Serves("scoring", "", authority); got != want {
			t.Errorf("%q: got %v, want %v", authority, got, want)
		}
	}
	if d.Serves("gone", "", "gone") || d.Serves("gone", "", "") {
		t.Error("a task that the policy does not have is served")
	}
}
