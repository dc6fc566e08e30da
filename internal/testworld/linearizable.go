package testworld

import "slices"

// Operation is one call on an object with a state of type S, between two times.
type Operation[S comparable] struct {
	Call, Return int64
	// Step is the state after the operation, and whether the operation may have had the
	// outcome that was seen in the state before it.
	Step func(before S) (after S, possible bool)
}

// Linearizable reports whether operations on one object can have happened one after the
// other, each between its call and its return, from an initial state: the search of Wing
// and Gong, with a memory of what was tried. interop/oracles compares it with porcupine.
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

// first reports whether an operation that was called at a time may come before all that
// are not done: none of them had returned by then.
func first[S comparable](operations []Operation[S], done []byte, call int64) bool {
	for i, o := range operations {
		if done[i] == 0 && o.Return < call {
			return false
		}
	}
	return true
}
