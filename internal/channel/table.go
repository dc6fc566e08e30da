package channel

import (
	"container/heap"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// session is the unit's side of a trusted channel. It is guarded by the mutex of
// its host and stays in the table until its expiry, whatever happens to its
// secret, because its window must.
type session struct {
	id     wire.SessionID
	expiry uint64 // Unix seconds
	head   attest.Digest
	opener wire.UnitID
	ring   identity.RingID  // under which its newest sealed copy is
	secret [secretSize]byte // while dropped, its digest; once closed, its close key, or zeros
	state  state
	window window
}

// state says what a session in the table can do.
type state byte

const (
	open    state = iota
	dropped       // its ring key was erased, and the secret with it; it may be sealed to us again
	closed        // closed by the client; it never opens again
)

// drop erases the secret and keeps its digest, so that only this secret comes
// back.
func (s *session) drop() {
	s.state, s.secret = dropped, wire.Sum(s.secret[:])
}

// close erases the secret for good. Of an open session it keeps the close key.
func (s *session) close() {
	switch s.state {
	case open:
		s.secret = closeKey(&s.secret)
	case dropped:
		clear(s.secret[:])
	}
	s.state = closed
}

// confirms reports whether the session was closed, and a request that asks for that
// can be told so. Of a nil session nothing can be told.
func (s *session) confirms(header wire.Header) bool {
	return s != nil && s.state == closed && header.Flags&wire.FlagClose != 0 && s.secret != [secretSize]byte{}
}

// has reports whether a secret is that of the session.
func (s *session) has(secret [secretSize]byte) bool {
	if s.state == dropped {
		secret = wire.Sum(secret[:])
	}
	return s.state != closed && s.secret == secret
}

// windowSize is the width of replay windows in request numbers.
const windowSize = 1024

// window remembers which of the newest 1024 request numbers a unit has seen.
type window struct {
	newest uint64
	seen   [windowSize / 64]uint64
}

// take reports whether a number is new, and remembers it. A number that is too
// old to tell is not new.
func (w *window) take(number uint64) bool {
	if number > w.newest {
		w.advance(number)
	} else if w.newest-number >= windowSize {
		return false
	}
	word, bit := &w.seen[number/64%(windowSize/64)], uint64(1)<<(number%64)
	if *word&bit != 0 {
		return false
	}
	*word |= bit
	return true
}

// advance moves the window up to a number and forgets what falls out of it.
func (w *window) advance(number uint64) {
	if number-w.newest >= windowSize {
		w.seen = [windowSize / 64]uint64{}
	} else {
		for n := w.newest + 1; n <= number; n++ {
			w.seen[n/64%(windowSize/64)] &^= 1 << (n % 64)
		}
	}
	w.newest = number
}

// table holds sessions by id and by expiry.
type table struct {
	byID     map[wire.SessionID]*session
	byExpiry expiryHeap
}

func (t *table) add(s *session) {
	t.byID[s.id] = s
	heap.Push(&t.byExpiry, s)
}

// expire removes the sessions that have ended and gives them.
func (t *table) expire(at time.Time) (ended []*session) {
	now := uint64(at.Unix())
	for len(t.byExpiry) > 0 && t.byExpiry[0].expiry <= now {
		s := heap.Pop(&t.byExpiry).(*session)
		clear(s.secret[:])
		s.state = closed
		delete(t.byID, s.id)
		ended = append(ended, s)
	}
	return ended
}

// expiryHeap is a [heap.Interface] with the session that ends first on top.
type expiryHeap []*session

func (h expiryHeap) Len() int           { return len(h) }
func (h expiryHeap) Less(i, j int) bool { return h[i].expiry < h[j].expiry }
func (h expiryHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *expiryHeap) Push(x any)        { *h = append(*h, x.(*session)) }
func (h *expiryHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return s
}
