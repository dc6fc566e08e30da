package testworld_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// failed records whether a check failed its test.
type failed struct {
	testing.TB
	yes bool
}

func (f *failed) Helper()               {}
func (f *failed) Errorf(string, ...any) { f.yes = true }

// TestRefused: the check Refused passes exactly one error and fails all others.
func TestRefused(t *testing.T) {
	refusal := wire.Refuse(wire.CutOff, "unit", "a", "b")
	tests := []struct {
		name string
		err  error
		want bool
	}{
		{"the reason", refusal, false},
		{"the reason, wrapped", fmt.Errorf("renewing: %w", refusal), false},
		{"no error", nil, true},
		{"another reason", wire.Refuse(wire.Expired, "unit", "a", "b"), true},
		{"an error without a reason", errors.New("cut-off"), true},
		{"another reason around it", fmt.Errorf("%w: %w", wire.Refuse(wire.Expired, "unit", "a", "b"), refusal), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := &failed{TB: t}
			testworld.Refused(f, tt.err, wire.CutOff)
			if f.yes != tt.want {
				t.Errorf("failed = %v, want %v", f.yes, tt.want)
			}
		})
	}
}

// TestFork: a world keeps its own history when two other worlds continue from it.
func TestFork(t *testing.T) {
	w := testworld.New(t).SignFirst(wire.Sum([]byte("root")), `
[task.scoring]
key_mode = "shared"
[task.scoring.release."1"]
reference = [ { platform = "soft", program = "scoring 1" } ]
`)
	one, two := w.NextPolicy("[task.scoring]\n", "[task.scoring]\nlifetime = \"30m\"\n"), w.NextPolicy(`"shared"`, `"unit"`)
	if got := len(w.Policy().Heads()); got != 1 || one.Policy().PolicyHead() == two.Policy().PolicyHead() {
		t.Errorf("got %d heads and next heads %v and %v, want one head and two that differ", got, one.Policy().PolicyHead(), two.Policy().PolicyHead())
	}
	w.Grant(w.Policy(), "scoring", "scoring 1", testworld.Noon)
}
