package channel

import (
	"testing"
)

// TestDecide is the whole table: whatever is not in a row that repeats may have
// been executed, and is not repeated.
func TestDecide(t *testing.T) {
	for i := range 32 {
		bit := func(n int) bool { return i>>n&1 == 1 }
		a := Attempt{Safe: bit(0), Marked: bit(1), Left: bit(2), NotExecuted: bit(3), Whole: bit(4)}
		want := Repeat
		if a.Left && !a.Safe && !a.Marked && !a.NotExecuted {
			want = OutcomeUnknown
		} else if !a.Whole {
			want = GiveUp
		}
		if got := Decide(a); got != want {
			t.Errorf("%+v: got %v, want %v", a, got, want)
		}
	}
	for _, c := range []struct {
		name string
		a    Attempt
		want Verdict
	}{
		{"nothing known", Attempt{}, GiveUp},
		{"an unsafe one that left", Attempt{Left: true, Whole: true}, OutcomeUnknown},
		{"an unsafe one that did not leave", Attempt{Whole: true}, Repeat},
		{"an unsafe one the unit did not execute", Attempt{Left: true, NotExecuted: true, Whole: true}, Repeat},
		{"a safe one", Attempt{Left: true, Safe: true, Whole: true}, Repeat},
		{"a marked one", Attempt{Left: true, Marked: true, Whole: true}, Repeat},
		{"a safe one whose content is gone", Attempt{Left: true, Safe: true}, GiveUp},
	} {
		if got := Decide(c.a); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}
