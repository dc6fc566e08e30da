package channel

import (
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// A unit remembers so many KEM keys of clients for so long. A cookie is valid for less
// time, and for one key, so that it is accepted once as well.
const (
	spentFor  = 2 * time.Minute
	maxSpent  = 1 << 16
	spentSize = 16 // bytes of a key's SHA-256 that are kept
)

// usedKEMKeys remembers the KEM keys that were used, so that a replayed open request costs
// nothing. The zero value remembers none. The mutex of its host guards it.
type usedKEMKeys struct {
	keys  map[[spentSize]byte]struct{}
	queue []spentKey // in the order of time; those before next are forgotten
	next  int
}

type spentKey struct {
	key [spentSize]byte
	end time.Time
}

// takeKey uses a KEM key. It refuses, with "replayed", one that was used in the last two
// minutes, and with "overload" more than there is room for.
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
