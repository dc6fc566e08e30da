package api

import (
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Rings are the ring keys of a [Report]. They are secret: the caller that makes or parses them
// calls [Rings.Clear] when done.
type Rings struct {
	Strict    RingKeys       `json:"strict"`                     // for sessions pinned to code
	Follow    RingKeys       `json:"follow"`                     // for sessions opened by task name
	Inherited *InheritedRing `json:"inherited_follow,omitempty"` // if the release continues another
}

// RingKeys are the keys of one kind of session. A unit seals under the current
// one.
type RingKeys struct {
	Previous *RingKey `json:"previous,omitempty"` // while a session under it may be open
	Current  *RingKey `json:"current"`
	Next     *RingKey `json:"next"`
}

// InheritedRing are the follow keys of the release that a release continues. They only open
// sessions.
type InheritedRing struct {
	Identity wire.Digest `json:"identity"` // of the predecessor
	RingKeys
}

// RingKey is one key, 32 bytes, and the end of the last session under it.
type RingKey struct {
	Key []byte    `json:"key"`
	End time.Time `json:"end"`
}

// Clear overwrites every key.
func (r Rings) Clear() {
	r.Strict.clear()
	r.Follow.clear()
	if r.Inherited != nil {
		r.Inherited.clear()
	}
}

func (k RingKeys) clear() {
	for _, key := range []*RingKey{k.Previous, k.Current, k.Next} {
		if key != nil {
			clear(key.Key)
		}
	}
}
