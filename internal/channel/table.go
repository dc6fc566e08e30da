package channel

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/queue"
	"github.com/cohort-tee/cohort/internal/wire"
)

// session is the unit's side of a session. The host's mutex guards it. It stays in the table
// until its expiry or until it yields, even without its secret, because the replay window is
// still needed.
type session struct {
	id       wire.SessionID
	expiry   uint64 // Unix seconds
	head     attest.Digest
	opener   wire.UnitID
	ring     identity.RingID  // ring key of the newest sealed copy
	secret   [secretSize]byte // if dropped: digest of the secret; if closed: close key, or zeros
	state    state
	alone    bool // only its opener has the session; it is never sealed under a ring key
	window   window
	sentHead *byte  // address of the proved policy head that a response carried last
	latest   int64  // latest NotAfter of all numbers taken, Unix milliseconds; 0: no number was taken
	turn     uint64 // order in which sessions were inserted into the table

	byExpiry, byYield int // positions in queues
}

// state is the state of a session in the table.
type state byte

const (
	open    state = iota
	dropped       // secret erased with its ring key; a sealed copy under a newer key restores it
	closed        // closed, and there is no room for a record of it
)

// dropSecret replaces the secret by its digest, so that later only the same secret is accepted.
func (s *session) dropSecret() {
	s.state, s.secret = dropped, wire.Sum(s.secret[:])
}

// markClosed erases the secret. For an open session it keeps the close key instead.
func (s *session) markClosed() {
	switch s.state {
	case open:
		s.secret = closeKey(&s.secret)
	case dropped:
		clear(s.secret[:])
	}
	s.state = closed
}

// hasSecret reports whether a secret is the secret of the session.
func (s *session) hasSecret(secret [secretSize]byte) bool {
	if s.state == dropped {
		secret = wire.Sum(secret[:])
	}
	return s.state != closed && s.secret == secret
}

// yields reports whether the session may leave the table before its expiry. That is so if no
// number was taken in it, or if every request with a number taken in it would now be late.
func (s *session) yields(at time.Time) bool { return s.latest == 0 || passed(at, s.latest) }

// record is what remains of a closed session that has left the table.
type record struct {
	id     wire.SessionID
	key    [secretSize]byte // close key; zeros: closing cannot be confirmed
	expiry uint64           // Unix seconds
	until  int64            // time until which the record must stay, Unix milliseconds

	byExpiry, byYield int // positions in queues
}

// table contains the sessions, and the records of closed sessions; no session is in both. It is
// guarded by Host.mu: only methods of Host and ServerRequest that hold it use a table.
type table struct {
	self     wire.UnitID
	limits   Limits
	byID     map[wire.SessionID]*session
	byExpiry queue.Queue[*session]
	own      queue.Queue[*session] // opened by this unit; the session that yields next is first
	joined   queue.Queue[*session] // opened by other units; in the same order
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

// yieldsBefore defines the order in which sessions yield. Sessions without a taken number yield
// first, in the order of their insertion. The others follow in the order of their latest NotAfter.
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

// findRoom reports whether there is room for a session; opened means that this unit opened it.
// It returns the session that must yield for it, or nil if no session must yield.
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

// insert adds a session to the table. The caller has checked that there is room.
func (t *table) insert(s *session) {
	t.turns++
	s.turn = t.turns
	t.byID[s.id] = s
	t.byExpiry.Add(s)
	t.queueOf(s).Add(s)
}

// remove removes a session from the table and erases its secret.
func (t *table) remove(s *session) {
	delete(t.byID, s.id)
	t.byExpiry.Remove(s)
	t.queueOf(s).Remove(s)
	clear(s.secret[:])
	s.state = closed
}

// touch records the NotAfter of a number that was taken in a session's window.
func (t *table) touch(s *session, notAfter int64) {
	if notAfter > s.latest {
		s.latest = notAfter
		t.queueOf(s).Moved(s)
	}
}

// closed reports whether a session is known to be closed, and returns its close key, which is
// zeros if closing cannot be confirmed.
func (t *table) closed(id wire.SessionID) (key *[secretSize]byte, known bool) {
	if r := t.records[id]; r != nil {
		return &r.key, true
	}
	if s := t.byID[id]; s != nil && s.state == closed {
		return &s.secret, true
	}
	return nil, false
}

// terminate closes a session and replaces it by a record. The record must stay until all
// requests with numbers taken in the session are late, and at least until least, in Unix
// milliseconds. If there is no room for a record, the session itself stays, without its secret.
func (t *table) terminate(s *session, least int64, at time.Time) {
	s.markClosed()
	t.touch(s, least)
	r := &record{id: s.id, key: s.secret, expiry: s.expiry, until: s.latest}
	if t.keepRecord(r, at) {
		t.remove(s)
	}
}

// keepRecord adds a record if there is room for it, and reports whether there is.
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

// expire removes sessions, and records of sessions, that have ended.
func (t *table) expire(at time.Time) {
	now := uint64(at.Unix())
	for s, ok := t.byExpiry.First(); ok && s.expiry <= now; s, ok = t.byExpiry.First() {
		t.remove(s)
	}
	for r, ok := t.recordExpiry.First(); ok && r.expiry <= now; r, ok = t.recordExpiry.First() {
		t.forget(r)
	}
}
