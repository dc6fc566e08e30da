package channel

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/queue"
	"github.com/cohort-tee/cohort/internal/wire"
)

// session is the unit's side of a trusted channel. It is guarded by the mutex of
// its host. It stays in the table until its expiry or until it yields, even without
// its secret, because its replay window must.
type session struct {
	id       wire.SessionID
	expiry   uint64 // Unix seconds
	head     attest.Digest
	opener   wire.UnitID
	ring     identity.RingID  // under which its newest sealed copy is
	secret   [secretSize]byte // while dropped, its digest; once closed, its close key, or zeros
	state    state
	alone    bool // it is never sealed under a ring key: only its opener has it
	window   window
	sentHead *byte  // where the proved policy head begins that a response in it carried last
	latest   int64  // the latest not after of the numbers taken, Unix milliseconds; 0: none was taken
	turn     uint64 // when it came into the table, in the order of turns

	byExpiry, byYield int // places in queues
}

// state is the state of a session in the table.
type state byte

const (
	open    state = iota
	dropped       // its ring key was erased, and the secret with it; it may be sealed to us again
	closed        // closed by the client, while there is no room for a record of it
)

// dropSecret erases the secret and keeps its digest, so that only this secret is accepted
// again.
func (s *session) dropSecret() {
	s.state, s.secret = dropped, wire.Sum(s.secret[:])
}

// markClosed erases the secret. An open session keeps its close key instead.
func (s *session) markClosed() {
	switch s.state {
	case open:
		s.secret = closeKey(&s.secret)
	case dropped:
		clear(s.secret[:])
	}
	s.state = closed
}

// hasSecret reports whether a secret is that of the session.
func (s *session) hasSecret(secret [secretSize]byte) bool {
	if s.state == dropped {
		secret = wire.Sum(secret[:])
	}
	return s.state != closed && s.secret == secret
}

// yields reports whether the session may leave the table before its expiry: it
// is untouched, or every number taken in it would be late.
func (s *session) yields(at time.Time) bool { return s.latest == 0 || passed(at, s.latest) }

// record is a closed session outside of the table.
type record struct {
	id     wire.SessionID
	key    [secretSize]byte // its close key; zeros: it confirms nothing
	expiry uint64           // Unix seconds
	until  int64            // it is kept until then, Unix milliseconds

	byExpiry, byYield int // places in queues
}

// table has the sessions, and the records of closed ones. No session has both. It is
// guarded by Host.mu: only methods of Host and ServerRequest that hold it touch a table.
type table struct {
	self     wire.UnitID
	limits   Limits
	byID     map[wire.SessionID]*session
	byExpiry queue.Queue[*session]
	own      queue.Queue[*session] // opened by this unit; the one that yields next is first
	joined   queue.Queue[*session] // opened by others; likewise
	turns    uint64

	records      map[wire.SessionID]*record
	recordExpiry queue.Queue[*record]
	recordYields queue.Queue[*record]
}

func newTable(self wire.UnitID, limits Limits) table {
	yield := func() queue.Queue[*session] {
		return queue.New(yieldsBefore, func(s *session) *int { return &s.byYield })
	}
	return table{
		self: self, limits: limits, byID: map[wire.SessionID]*session{}, own: yield(), joined: yield(),
		byExpiry:     queue.New(func(a, b *session) bool { return a.expiry < b.expiry }, func(s *session) *int { return &s.byExpiry }),
		records:      map[wire.SessionID]*record{},
		recordExpiry: queue.New(func(a, b *record) bool { return a.expiry < b.expiry }, func(r *record) *int { return &r.byExpiry }),
		recordYields: queue.New(func(a, b *record) bool { return a.until < b.until }, func(r *record) *int { return &r.byYield }),
	}
}

// yieldsBefore is the order in which sessions yield: untouched ones first, as
// they came, then by the latest end of what was taken in them.
func yieldsBefore(a, b *session) bool {
	if a.latest != b.latest {
		return a.latest < b.latest
	}
	return a.turn < b.turn
}

// queueOf returns the queue in which a session waits to yield.
func (t *table) queueOf(s *session) *queue.Queue[*session] {
	if s.opener == t.self {
		return &t.own
	}
	return &t.joined
}

// findRoom reports whether there is room for a session that this unit (opened) or another
// unit opened, and returns the session that must yield for it; nil: none must.
func (t *table) findRoom(opened bool, at time.Time) (yields *session, ok bool) {
	own, anyOwn := t.own.First()
	joined, anyJoined := t.joined.First()
	switch {
	case opened && t.own.Len() >= t.limits.Opened:
		yields = own
	case len(t.byID) < t.limits.Sessions:
		return nil, true
	case anyOwn && (!anyJoined || yieldsBefore(own, joined)):
		yields = own
	default:
		yields = joined
	}
	return yields, yields != nil && yields.yields(at)
}

// insert puts a session into the table, for which there is room.
func (t *table) insert(s *session) {
	t.turns++
	s.turn = t.turns
	t.byID[s.id] = s
	t.byExpiry.Add(s)
	t.queueOf(s).Add(s)
}

// remove takes a session out of the table and erases its secret.
func (t *table) remove(s *session) {
	delete(t.byID, s.id)
	t.byExpiry.Remove(s)
	t.queueOf(s).Remove(s)
	clear(s.secret[:])
	s.state = closed
}

// touch notes the end of a number that was taken in a session's window.
func (t *table) touch(s *session, notAfter int64) {
	if notAfter > s.latest {
		s.latest = notAfter
		t.queueOf(s).Moved(s)
	}
}

// closed returns the close key of a closed session, zeros if there is none, and whether
// it is known to be closed.
func (t *table) closed(id wire.SessionID) (key *[secretSize]byte, known bool) {
	if r := t.records[id]; r != nil {
		return &r.key, true
	}
	if s := t.byID[id]; s != nil && s.state == closed {
		return &s.secret, true
	}
	return nil, false
}

// terminate closes a session: a record replaces it, until its numbers are late and not
// before least, in Unix milliseconds. If there is no room for a record the entry itself
// stays, without its secret.
func (t *table) terminate(s *session, least int64, at time.Time) {
	s.markClosed()
	t.touch(s, least)
	r := &record{id: s.id, key: s.secret, expiry: s.expiry, until: s.latest}
	if t.keepRecord(r, at) {
		t.remove(s)
	}
}

// keepRecord keeps a record, and reports whether there was room for it.
func (t *table) keepRecord(r *record, at time.Time) bool {
	if len(t.records) >= t.limits.Closed {
		oldest, _ := t.recordYields.First()
		if oldest == nil || !passed(at, oldest.until) {
			return false
		}
		t.forget(oldest)
	}
	t.records[r.id] = r
	t.recordExpiry.Add(r)
	t.recordYields.Add(r)
	return true
}

// forget removes a record.
func (t *table) forget(r *record) {
	delete(t.records, r.id)
	t.recordExpiry.Remove(r)
	t.recordYields.Remove(r)
	clear(r.key[:])
}

// expire removes the sessions, and the records of sessions, that have ended.
func (t *table) expire(at time.Time) {
	now := uint64(at.Unix())
	for s, ok := t.byExpiry.First(); ok && s.expiry <= now; s, ok = t.byExpiry.First() {
		t.remove(s)
	}
	for r, ok := t.recordExpiry.First(); ok && r.expiry <= now; r, ok = t.recordExpiry.First() {
		t.forget(r)
	}
}
