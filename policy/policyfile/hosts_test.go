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
