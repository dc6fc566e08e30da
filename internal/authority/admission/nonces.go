package admission

import (
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// NonceBody is the size in bytes of the part of a nonce that its MAC covers: its expiry (8 bytes,
// Unix seconds) and 16 random bytes.
const NonceBody = 8 + 16

// NonceExpiry returns the expiry in a nonce whose MAC was verified.
func NonceExpiry(body [NonceBody]byte) time.Time {
	return time.Unix(int64(binary.BigEndian.Uint64(body[:])), 0)
}

// Nonces are the nonces that were used and have not expired, by the second in which they expire:
// about 50 bytes each.
type Nonces struct {
	most int

	mu   sync.Mutex
	all  map[int64]map[[NonceBody]byte]struct{} // guarded by mu
	size int                                    // guarded by mu; in all of all
}

// NewNonces returns Nonces with room for all nonces that can be used before they expire, at
// perSecond requests per second with bursts of twice that.
func NewNonces(perSecond int) *Nonces {
	most := perSecond * (int(wire.NonceLifetime/time.Second) + 3)
	return &Nonces{most: most, all: make(map[int64]map[[NonceBody]byte]struct{})}
}

// Add records a nonce. It refuses, with "nonce-used", a nonce that is already recorded, and with
// "rate" a nonce for which there is no room.
func (s *Nonces) Add(body [NonceBody]byte, now time.Time) error {
	end := NonceExpiry(body).Unix()
	s.mu.Lock()
	defer s.mu.Unlock()
	for ended, nonces := range s.all { // at most one for each second of a nonce's lifetime
		if ended < now.Unix() {
			s.size -= len(nonces)
			delete(s.all, ended)
		}
	}
	if _, there := s.all[end][body]; there {
		return wire.Refuse(wire.NonceUsed, "challenge", fmt.Sprintf("%x came before", body[:8]), "a fresh one for each request")
	}
	if s.size >= s.most {
		return wire.Refuse(wire.TooMany, "challenges that came and have not ended", s.size, s.most)
	}
	if s.all[end] == nil {
		s.all[end] = make(map[[NonceBody]byte]struct{})
	}
	s.all[end][body] = struct{}{}
	s.size++
	return nil
}
