package channel

import (
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Limits of the KEM keys of clients that a unit remembers. A cookie is for one key and is
// valid for a shorter time, so that the unit accepts each cookie only once, too.
const (
	spentFor  = 2 * time.Minute
	maxSpent  = 1 << 16
	spentSize = 16 // bytes of a key's SHA-256 that are kept
)

// usedKEMKeys remembers used KEM keys, so that a unit refuses a replayed open request before
// any expensive work. The zero value remembers no key. The host's mutex guards it.
type usedKEMKeys struct {
	keys  map[[spentSize]byte]struct{}
	queue []spentKey // in the order of time; entries before next are forgotten
	next  int
}

type spentKey struct {
	key [spentSize]byte
	end time.Time
}

// takeKey marks a KEM key as used. It refuses with "replayed" a key that was used in the last two
// minutes, and with "overload" any key when there is no room for one more.
func (s *usedKEMKeys) takeKey(kemKey []byte, at time.Time) error {
	s.forget(at)
	digest := wire.Sum(kemKey)
	key := [spentSize]byte(digest[:])
	if _, taken := s.keys[key]; taken {
		return wire.Refuse(wire.Replayed, "open request: KEM key", fmt.Sprintf("a key sent before, SHA-256 %x…", key), "a new key")
	}
	if len(s.keys) >= maxSpent {
		return wire.Refuse(wire.Overload, "unit: sessions opened in 2 minutes", len(s.keys), maxSpent)
	}
	if s.keys == nil {
		s.keys = map[[spentSize]byte]struct{}{}
	}
	s.keys[key] = struct{}{}
	s.queue = append(s.queue, spentKey{key, at.Add(spentFor)})
	return nil
}

// forget forgets the keys that were used two minutes ago.
func (s *usedKEMKeys) forget(at time.Time) {
	for s.next < len(s.queue) && !at.Before(s.queue[s.next].end) {
		delete(s.keys, s.queue[s.next].key)
		s.next++
	}
	if s.next > len(s.queue)/2 {
		s.queue = append(s.queue[:0], s.queue[s.next:]...)
		s.next = 0
	}
}
