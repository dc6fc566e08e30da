package channel

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Limits bound what a host keeps. Zero fields take the defaults.
type Limits struct {
	Sessions int // in the table, of all units; 131,072
	Opened   int // of those, opened by this unit; a quarter
	Cookies  int // opens under way above which a cookie is demanded; 8
	OneOffs  int // one-off requests under way; 256
}

// Standing is what a unit is by its newest certificate report. The host owns
// the ring keys in it: it erases those that a later standing does not hold.
type Standing struct {
	Task     string
	Group    string // and Role, where the unit works in a group: then strict ring
	Role     string // keys are its role's, and follow ring keys the whole group's
	Identity attest.Digest
	Genesis  attest.Digest
	Root     attest.Digest // of the authority
	Head     attest.Digest // of the policy
	Unit     []byte        // certificate of the signing key, DER
	Cross    []byte        // cross-certificate, DER
	NotAfter time.Time     // of the unit certificate
	OneOff   bool          // policy lets one-off requests be marked instead of safe
	Ring     identity.Ring
}

// Host is the unit's side of all its sessions. The zero Host serves nothing. It
// is safe for concurrent use.
//
// Every time that is passed to it is held against the newest one before and
// never goes back, because a clock that does would bring back sessions whose
// replay windows are gone.
type Host struct {
	id      wire.UnitID
	key     *ecdsa.PrivateKey
	limits  Limits
	bodies  sync.Pool // of *[]byte, for plaintext of sealed sessions
	chunks  chunkPool // of requests
	answers sync.Pool // of *[]byte, for chunks of answers

	mu       sync.Mutex // guards all below
	newest   time.Time
	standing *standing // nil before the first Update
	table    table
	opened   int  // sessions in the table that this unit opened
	stale    bool // a session in the table may want to be sealed anew
}

// standing is a Standing ready for use. It is immutable.
type standing struct {
	Standing
	chain  []byte // Frame("cohort chain v1", unit certificate, cross-certificate)
	strict *ring  // current, for sessions pinned to code
	follow *ring  // current, for sessions opened by task name
	rings  map[identity.RingID]*ring
}

// NewHost makes the host of a unit's signing key. It holds no session and no
// ring until [Host.Update].
func NewHost(key *ecdsa.PrivateKey, limits Limits) (*Host, error) {
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("encoding the signing key: %w", err)
	}
	if limits.Sessions == 0 {
		limits.Sessions = 1 << 17
	}
	if limits.Opened == 0 {
		limits.Opened = limits.Sessions / 4
	}
	if limits.Cookies == 0 {
		limits.Cookies = 8
	}
	if limits.OneOffs == 0 {
		limits.OneOffs = 256
	}
	h := &Host{id: wire.UnitIDOf(spki), key: key, limits: limits, table: table{byID: map[wire.SessionID]*session{}}}
	h.bodies.New = func() any { b := make([]byte, 0, maxTicket); return &b }
	return h, nil
}

// ID is the unit's id.
func (h *Host) ID() wire.UnitID { return h.id }

// Update makes s what the unit is from now on. Ring keys that s no longer holds
// are erased, and with them the secrets of sessions that were not sealed again
// under another; their replay windows stay. It refuses, with "identity", a
// certificate of another key, and with "ring" a standing without current keys.
func (h *Host) Update(s Standing) error {
	if err := h.mine(s); err != nil {
		return err
	}
	next := &standing{Standing: s, chain: wire.Frame(wire.LabelChain, s.Unit, s.Cross), rings: map[identity.RingID]*ring{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	var held map[identity.RingID]*ring
	if h.standing != nil {
		held = h.standing.rings
	}
	own := func(keys identity.RingKeys, of attest.Digest, pin Pin) *ring {
		for _, key := range keys.Keys() {
			next.rings[key.ID()] = take(held[key.ID()], key, of, pin.bytes())
		}
		if keys.Current == nil {
			return nil
		}
		return next.rings[keys.Current.ID()]
	}
	strict, follow, of := Pin{Genesis: s.Genesis, ID: s.Identity}, Pin{Genesis: s.Genesis, Task: s.Task}, s.Identity
	if s.Group != "" {
		strict, follow = Pin{Genesis: s.Genesis, Group: s.Group, Role: s.Role}, Pin{Genesis: s.Genesis, Group: s.Group}
		of = wire.RoleID(s.Identity, s.Role)
	}
	own(s.Ring.Inherited.Keys, s.Ring.Inherited.Identity, follow)
	next.strict = own(s.Ring.Strict, of, strict)
	next.follow = own(s.Ring.Follow, s.Identity, follow)
	if next.strict == nil || next.follow == nil {
		return wire.Refuse(wire.UnknownRing, "unit: ring", "none", "a current key of each kind")
	}
	h.standing, h.stale = next, true
	h.forget(held)
	return nil
}

// mine refuses a standing that is not this unit's.
func (h *Host) mine(s Standing) error {
	c, err := x509.ParseCertificate(s.Unit)
	if err != nil {
		return wire.Refuse(wire.BadChain, "unit: certificate", err, "DER")
	}
	if got := wire.UnitIDOf(c.RawSubjectPublicKeyInfo); got != h.id {
		return wire.Refuse(wire.WrongIdentity, "unit: key of the certificate", got, h.id)
	}
	return nil
}

// take is the ring of a key: the one that is held already, so that its seal keys
// stay, or a new one.
func take(held *ring, key *identity.RingKey, of attest.Digest, pin []byte) *ring {
	r := &ring{key: key, identity: of, pin: pin, seals: map[wire.UnitID]*sealKey{}}
	if held != nil {
		held.mu.RLock()
		r.seals, r.oneOffs = maps.Clone(held.seals), held.oneOffs
		held.mu.RUnlock()
	}
	return r
}

// forget erases the rings that are no longer held and drops the secrets whose
// newest sealed copy is under one.
func (h *Host) forget(held map[identity.RingID]*ring) {
	for id, r := range held {
		if h.standing.rings[id] == nil {
			r.erase()
		} else if h.standing.rings[id].key != r.key {
			r.key.Erase() // the new standing has its own copy
		}
	}
	for _, s := range h.table.byID {
		if h.standing.rings[s.ring] == nil && s.state == open {
			s.drop()
		}
	}
}

// at holds a time against the newest one before. The caller holds the mutex.
func (h *Host) at(t time.Time) time.Time {
	if t.After(h.newest) {
		h.newest = t
	}
	return h.newest
}

// serving is the standing, if its certificate lets the unit serve. The caller
// holds the mutex.
func (h *Host) serving(at time.Time) (*standing, error) {
	if h.standing == nil {
		return nil, wire.Refuse(wire.NotEnrolled, "unit: certificate", "none", "an enrolled unit")
	}
	if !at.Before(h.standing.NotAfter) {
		return nil, wire.Refuse(wire.CertExpired, "unit: time", at.UTC(), h.standing.NotAfter.UTC())
	}
	return h.standing, nil
}

// expire removes sessions that have ended. The caller holds the mutex.
func (h *Host) expire(at time.Time) {
	for _, s := range h.table.expire(at) {
		if s.opener == h.id {
			h.opened--
		}
	}
}

// Join takes over a session that another unit sealed: pushed, pulled, or brought
// by the client as its ticket. A session that is held already stays as it is,
// with its window; one whose secret was dropped gets it back. It gives the id
// of the session.
//
// It refuses with "ring" a ring key that the unit does not hold, with
// "signature" changed bytes, with "identity" another identity or pin than the
// ring key is for, with "session-over" or "expired" what has ended or would
// outlive its ring key, with "replayed" a second secret for a known session,
// and with "overload" when the table is full.
func (h *Host) Join(sealed []byte, at time.Time) (wire.SessionID, error) {
	u, r, err := h.unverified(sealedSession, sealed, at)
	if err != nil {
		return wire.SessionID{}, err
	}
	s := &session{id: u.session, expiry: u.expiry, ring: u.ring}
	body := h.bodies.Get().(*[]byte)
	defer h.bodies.Put(body)
	plaintext, err := r.open(u, (*body)[:0])
	if err == nil {
		err = openBody(s, plaintext, r.pin)
		clear(plaintext)
	}
	if err != nil {
		return wire.SessionID{}, err
	}
	return u.session, h.install(s, at)
}

// unverified takes a sealed session or tombstone apart and finds its ring. What
// it says is to be believed only once it was opened.
func (h *Host) unverified(kind kindOfSealed, sealed []byte, at time.Time) (unverified, *ring, error) {
	u, err := unverifiedSealed(kind, sealed)
	if err != nil {
		return unverified{}, nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.at(at)
	st, err := h.serving(at)
	if err != nil {
		return unverified{}, nil, err
	}
	if st.Group != "" && u.identity != st.strict.identity && u.identity != st.Identity {
		return unverified{}, nil, wire.Refuse(wire.WrongRole, "sealed session: role", u.identity, st.Role)
	}
	r := st.rings[u.ring]
	if r == nil {
		return unverified{}, nil, wire.Refuse(wire.UnknownRing, "sealed session: ring id", u.ring, "one that the unit holds")
	}
	if u.identity != r.identity {
		return unverified{}, nil, wire.Refuse(wire.WrongIdentity, "sealed session: identity", u.identity, r.identity)
	}
	return u, r, u.alive(r, at)
}

// install puts a session into the table, or refreshes the one that is there.
func (h *Host) install(s *session, at time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire(h.at(at))
	known := h.table.byID[s.id]
	if known == nil {
		return h.add(s)
	}
	defer clear(s.secret[:]) // a second copy of what is held, or refused
	switch {
	case known.state == closed:
		return wire.Refuse(wire.SessionOver, "session "+s.id.String(), "closed", "an open one")
	case known.expiry != s.expiry || !known.has(s.secret):
		return wire.Refuse(wire.Replayed, "session "+s.id.String(), "a second secret or expiry", "one")
	}
	known.secret, known.state = s.secret, open
	if h.standing.current(s.ring) || h.standing.rings[known.ring] == nil {
		known.ring = s.ring
	}
	h.stale = h.stale || !h.standing.current(known.ring)
	return nil
}

// add puts a new session into the table while there is room. The caller holds
// the mutex.
func (h *Host) add(s *session) error {
	if len(h.table.byID) >= h.limits.Sessions {
		return wire.Refuse(wire.Overload, "unit: sessions", len(h.table.byID), fmt.Sprint("below ", h.limits.Sessions))
	}
	if h.standing.rings[s.ring] == nil {
		return wire.Refuse(wire.UnknownRing, "session: ring id", s.ring, "one that the unit holds")
	}
	if s.opener == h.id {
		h.opened++
	}
	h.table.add(s)
	h.stale = h.stale || !h.standing.current(s.ring)
	return nil
}

// current reports whether new sessions are sealed under a ring key.
func (st *standing) current(id identity.RingID) bool {
	return id == st.strict.key.ID() || id == st.follow.key.ID()
}

// Bury ends a session by the tombstone that another unit sealed. The session's
// entry stays until its expiry, so that no sealed copy opens it again. It
// refuses as [Host.Join] does.
func (h *Host) Bury(tombstone []byte, at time.Time) (wire.SessionID, error) {
	u, r, err := h.unverified(sealedTombstone, tombstone, at)
	if err != nil {
		return wire.SessionID{}, err
	}
	if _, err := r.open(u, nil); err != nil {
		return wire.SessionID{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire(h.at(at))
	s := h.table.byID[u.session]
	if s == nil {
		s = &session{id: u.session, expiry: u.expiry, ring: u.ring, state: dropped}
		if err := h.add(s); err != nil {
			return u.session, err
		}
	}
	s.close()
	return u.session, nil
}

// Reseal seals sessions anew whose newest sealed copy is under a ring key that
// is no longer current, at most limit of them, and says how many are left. It
// moves no expiry. A session that another unit has sealed anew, and that came
// by [Host.Join], is not sealed again. Without any it costs nothing.
//
// A session that cannot be sealed holds up no other and is not among those
// left: what is sealed is given beside the error, which joins at most limit.
func (h *Host) Reseal(limit int, at time.Time) (sealed [][]byte, left int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.at(at)
	h.expire(at)
	st, err := h.serving(at)
	if err != nil || !h.stale {
		return nil, 0, err
	}
	var faults []error
	for _, s := range h.table.byID {
		if s.state != open || st.current(s.ring) {
			continue
		}
		if len(sealed) == limit {
			left++
			continue
		}
		b, err := h.seal(st, st.newer(s.ring), s)
		switch {
		case err == nil:
			sealed = append(sealed, b)
		case len(faults) < limit:
			faults = append(faults, err)
		}
	}
	h.stale = left > 0
	return sealed, left, errors.Join(faults...)
}

// newer is the current ring for sessions under a ring that is not: strict stays
// strict, and what follows a task by name, inherited or not, follows on.
func (st *standing) newer(id identity.RingID) *ring {
	if slices.Equal(st.rings[id].pin, st.strict.pin) {
		return st.strict
	}
	return st.follow
}

// seal seals a session under a ring. The session is guarded by the mutex, or not
// in the table yet.
func (h *Host) seal(st *standing, r *ring, s *session) ([]byte, error) {
	if uint64(r.key.End().Unix()) < s.expiry {
		return nil, wire.Refuse(wire.Expired, "session: expiry", s.expiry, fmt.Sprint("within the ring key's end ", r.key.End().Unix()))
	}
	body := sealedBody(s, r.pin)
	defer clear(body)
	b := bound{identity: r.identity, ring: r.key.ID(), session: s.id, expiry: s.expiry, sealer: h.id}
	sealed, err := r.seal(sealedSession, b, body)
	if err != nil {
		return nil, fmt.Errorf("sealing session %s: %w", s.id, err)
	}
	s.ring = b.ring
	return sealed, nil
}

// Stats are what a host holds.
type Stats struct {
	Sessions int `json:"sessions"` // in the table, dropped and closed ones included
	Opened   int `json:"opened"`   // of those, opened by this unit
	Rings    int `json:"rings"`    // ring keys held
}

// Stats counts what the host holds at a time.
func (h *Host) Stats(at time.Time) Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expire(h.at(at))
	s := Stats{Sessions: len(h.table.byID), Opened: h.opened}
	if h.standing != nil {
		s.Rings = len(h.standing.rings)
	}
	return s
}
