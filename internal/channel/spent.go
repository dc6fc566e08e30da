package channel

import (
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// How long a unit remembers a client's KEM key, and how many. A cookie holds for
// less, and is for one key, so that it is taken once as well.
const (
	spentFor  = 2 * time.Minute
	maxSpent  = 1 << 16
	spentSize = 16 // bytes of a key's SHA-256 that are kept
)

// spent remembers the KEM keys that were taken, so that an open request that is
// sent again costs nothing. The zero value remembers none. It is guarded by the
// mutex of its host.
type spent struct {
	keys  map[[spentSize]byte]struct{}
	queue []spentKey // in the order of time; what is before next is gone
	next  int
}

type spentKey struct {
	key [spentSize]byte
	end time.Time
}

// takeKey takes a KEM key. It refuses, with "replayed", one that was taken in the
// last two minutes, and with "overload" more than there is room for.
func (s *spent) takeKey(kemKey []byte, at time.Time) error {
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

// forget forgets the keys that were taken two minutes ago.
func (s *spent) forget(at time.Time) {
	for s.next < len(s.queue) && !at.Before(s.queue[s.next].end) {
		delete(s.keys, s.queue[s.next].key)
		s.next++
	}
	if s.next > len(s.queue)/2 {
		s.queue = append(s.queue[:0], s.queue[s.next:]...)
		s.next = 0
	}
}
