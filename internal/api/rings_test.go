package api

import (
	"bytes"
	"testing"
)

// TestClearRings clears every key of a full set, and one of the smallest.
func TestClearRings(t *testing.T) {
	var all [][]byte
	keys := func() RingKeys {
		var made [3]*RingKey
		for i := range made {
			made[i] = &RingKey{Key: bytes.Repeat([]byte{7}, 32)}
			all = append(all, made[i].Key)
		}
		return RingKeys{made[0], made[1], made[2]}
	}
	Rings{Strict: keys(), Follow: keys(), Inherited: &InheritedRing{RingKeys: keys()}}.Clear()
	for i, key := range all {
		if !bytes.Equal(key, make([]byte, 32)) {
			t.Errorf("key %d: got %x, want zeros", i, key)
		}
	}
	Rings{}.Clear()
}
