package testworld

import "slices"

// Operation is one call on an object with state S, with the times of its call and return.
type Operation[S comparable] struct {
	Call, Return int64
	// Step returns the state after the operation, and whether the observed outcome is
	// possible in the state before it.
	Step func(before S) (after S, possible bool)
}

// Linearizable reports whether the operations can have happened one after another from the
// initial state, each between its call and its return. It is the search of Wing and Gong
// with memoization; interop/oracles compares it with porcupine.
func Linearizable[S comparable](state S, operations []Operation[S]) bool {
	type tried struct {
		done  string // a byte for each operation
		state S
	}
	failed := map[tried]bool{}
	done := make([]byte, len(operations))
	var search func(state S) bool
	search = func(state S) bool {
		if !slices.Contains(done, 0) {
			return true
		}
		here := tried{string(done), state}
		if failed[here] {
			return false
		}
		for i, o := range operations {
			if done[i] == 1 || !first(operations, done, o.Call) {
				continue
			}
			after, possible := o.Step(state)
			if !possible {
				continue
			}
			done[i] = 1
			if search(after) {
				return true
			}
			done[i] = 0
		}
		failed[here] = true
		return false
	}
	return search(state)
}

// first reports whether an operation with the given call time can precede all operations
// that are not done: none of them returned before that time.
func first[S comparable](operations []Operation[S], done []byte, call int64) bool {
	for i, o := range operations {
		if done[i] == 0 && o.Return < call {
			return false
		}
	}
	return true
}
