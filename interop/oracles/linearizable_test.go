package oracles

import (
	"math/rand/v2"
	"testing"

	"github.com/anishathalye/porcupine"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// TestLinearizable: the search that the authority's outage tests use finds of random
// histories of a set-once flag what porcupine finds.
func TestLinearizable(t *testing.T) {
	step := map[string]func(bool) (bool, bool){
		"set":     func(before bool) (bool, bool) { return true, !before },
		"present": func(before bool) (bool, bool) { return true, before },
		"absent":  func(before bool) (bool, bool) { return false, !before },
		"any":     func(bool) (bool, bool) { return true, true },
	}
	model := porcupine.Model{
		Init: func() any { return false },
		Step: func(before, _, output any) (bool, any) {
			after, possible := step[output.(string)](before.(bool))
			return possible, after
		},
	}
	outcomes := []string{"set", "present", "absent", "any"}
	random := rand.New(rand.NewPCG(1, 2))
	accepted := 0
	const rounds = 3000
	for range rounds {
		var ours []testworld.Operation[bool]
		var theirs []porcupine.Operation
		for client := range 1 + random.IntN(8) {
			call := random.Int64N(12)
			end := call + random.Int64N(8)
			outcome := outcomes[random.IntN(len(outcomes))]
			ours = append(ours, testworld.Operation[bool]{Call: call, Return: end, Step: step[outcome]})
			theirs = append(theirs, porcupine.Operation{ClientId: client, Call: call, Return: end, Output: outcome})
		}
		got, want := testworld.Linearizable(false, ours), porcupine.CheckOperations(model, theirs)
		if got != want {
			t.Fatalf("got %v, porcupine %v: %+v", got, want, theirs)
		}
		if got {
			accepted++
		}
	}
	if accepted < rounds/20 || accepted > rounds*19/20 {
		t.Errorf("%d of %d histories are linearizable: the comparison says little", accepted, rounds)
	}
}
