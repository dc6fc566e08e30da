package channel

import (
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Limits are the limits for sessions and requests of a host. A zero field means the default,
// which follows the semicolon.
type Limits struct {
	Sessions int // sessions in the table, opened by any unit; 131,072
	Opened   int // sessions in the table that this unit opened; a quarter of Sessions
	Closed   int // records of closed sessions; 65,536
	Cookies  int // with more open requests in progress, the unit demands a cookie; 8
	OneOffs  int // one-off requests in progress; 512
}

// UnitCredentials contains the certificates and keys of a unit from its newest certificate
// report. The host owns the ring keys: it erases those that later credentials do not contain.
type UnitCredentials struct {
	Task     string
	Group    string // set, together with Role, if the unit works in a group
	Role     string // if set, strict ring keys are for the role, follow ring keys for the group
	Identity attest.Digest
	Genesis  attest.Digest
	Root     attest.Digest // digest of the authority root
	Head     attest.Digest // policy head
	Unit     []byte        // certificate of the signing key, DER
	Cross    []byte        // cross-certificate or, in a group, the group root, DER
	NotAfter time.Time     // end of the unit certificate
	OneOff   bool          // policy allows one-off requests with an Idempotency-Key besides safe ones
	Facts    policy.Facts  // facts about the unit in its certificate
	Ring     identity.Ring
}

// Host is the unit's side of all its sessions. The zero Host serves nothing. It is safe for
// concurrent use.
//
// Callers pass the unit's own time, which never goes back: a clock that goes back would revive
// sessions whose replay windows are gone. If calls arrive with times out of order, the latest
// time counts.
type Host struct {
	id        wire.UnitID
	key       *ecdsa.PrivateKey
	limits    Limits
	bodies    sync.Pool  // *[]byte for plaintext of sealed sessions
	chunks    chunk.Pool // buffers for chunks of requests
	responses sync.Pool  // *[]byte for chunks of responses

	mu          watchedMutex // guards all below
	newest      time.Time
	credentials *credentials // nil before the first Update
	known       knownPolicy  // the newest policy, which may be newer than the credentials
	table       table
	spent       usedKEMKeys // KEM keys of clients
	stale       bool        // a session in the table may need to be sealed again
}

// credentials contains UnitCredentials ready for use. It is immutable.
type credentials struct {
	UnitCredentials
	chain  []byte // Frame("cohort chain v1", unit certificate, cross-certificate)
	strict *ring  // current ring for sessions that pin a release or a role
	follow *ring  // current ring for sessions that pin a task by name, or a whole group
	rings  map[identity.RingID]*ring
}

// NewHost makes the host for a unit's signing key. The host has no session and no ring key
// until [Host.Update].
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
	if limits.Closed == 0 {
		limits.Closed = 1 << 16
	}
	if limits.Cookies == 0 {
		limits.Cookies = 8
	}
	if limits.OneOffs == 0 {
		limits.OneOffs = 512
	}
	id := wire.UnitIDOf(spki)
	h := &Host{id: id, key: key, limits: limits, table: newTable(id, limits)}
	h.bodies.New = func() any { b := make([]byte, 0, envelope.MaxSealed); return &b }
	return h, nil
}

// Limits returns the limits with the defaults filled in.
func (h *Host) Limits() Limits { return h.limits }

// TaskName returns the task of the unit's credentials. It is empty before the first Update.
func (h *Host) TaskName() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.credentials == nil {
		return ""
	}
	return h.credentials.Task
}

// ID returns the unit's id.
func (h *Host) ID() wire.UnitID { return h.id }

// Update makes s the credentials of the unit. It erases the ring keys that are not in s, and with
// them the secrets of sessions that were not sealed again under a key in s; the replay windows of
// these sessions stay. Update refuses with "identity" a certificate that is not for the unit's key,
// and with "ring" credentials without current ring keys.
//
// Update never uses a ring key that is older than a cut-off before s.Head, whatever its source.
func (h *Host) Update(s UnitCredentials) error {
	if err := h.checkOwner(s); err != nil {
		return err
	}
	next := &credentials{UnitCredentials: s, chain: wire.Frame(wire.LabelChain, s.Unit, s.Cross), rings: map[identity.RingID]*ring{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	var known map[identity.RingID]*ring
	if h.credentials != nil {
		known = h.credentials.rings
	}
	then, _ := h.known.policy.AtHead(s.Head) // policy of this report; zero if Follow has not applied it yet
	own := func(keys identity.RingKeys, of attest.Digest, pin unitauth.Pin, holders identity.RingHolders) *ring {
		for _, key := range keys.Keys() {
			r := ringOfKey(known[key.ID()], key, of, pin.Encode())
			r.holders = holders
			if r.since.IsZero() {
				r.since = s.Head
			}
			if r.cutBy(then) {
				key.Erase()
				continue
			}
			next.rings[key.ID()] = r
		}
		if keys.Current == nil {
			return nil
		}
		return next.rings[keys.Current.ID()]
	}
	strict, follow, of := unitauth.Pin{Genesis: s.Genesis, ID: s.Identity}, unitauth.Pin{Genesis: s.Genesis, Task: s.Task}, s.Identity
	if s.Group != "" {
		strict, follow = unitauth.Pin{Genesis: s.Genesis, Group: s.Group, Role: s.Role}, unitauth.Pin{Genesis: s.Genesis, Group: s.Group}
		of = wire.RoleID(s.Identity, s.Role)
	}
	own(s.Ring.Inherited.Keys, s.Ring.Inherited.Identity, follow, identity.RingHolders{Identity: s.Ring.Inherited.Identity, Follow: true})
	next.strict = own(s.Ring.Strict, of, strict, identity.RingHolders{Identity: s.Identity, Role: s.Role})
	next.follow = own(s.Ring.Follow, s.Identity, follow, identity.RingHolders{Identity: s.Identity, Follow: true})
	if next.strict == nil || next.follow == nil {
		return wire.Refuse(wire.UnknownRing, "unit: ring", fmt.Sprintf("a current strict key: %t, a current follow key: %t", next.strict != nil, next.follow != nil), "both, since the last cut that policy knows")
	}
	h.credentials, h.stale = next, true
	h.known.consider(next)
	h.forgetRings(known)
	return nil
}

// checkOwner refuses credentials whose certificate is not for the unit's key.
func (h *Host) checkOwner(s UnitCredentials) error {
	c, err := x509.ParseCertificate(s.Unit)
	if err != nil {
		return wire.Refuse(wire.BadChain, "unit: certificate", err, "DER")
	}
	if got := wire.UnitIDOf(c.RawSubjectPublicKeyInfo); got != h.id {
		return wire.Refuse(wire.WrongIdentity, "unit: key of the certificate", got, h.id)
	}
	return nil
}

// ringOfKey returns the ring of a key. If the unit already has the key, the new ring keeps the
// derived keys and the age of the known ring.
func ringOfKey(known *ring, key *identity.RingKey, of attest.Digest, pin []byte) *ring {
	r := &ring{key: key, identity: of, pin: pin}
	if known != nil {
		r.derived, r.since = known.derived, known.since
	} else {
		r.derived = &derived{seals: map[wire.UnitID]*sealKey{}}
	}
	return r
}

// forgetRings erases the rings that are no longer in the credentials, and drops the secrets of
// sessions whose newest sealed copy is under such a ring. A session that stays with its opener
// alone keeps its secret.
func (h *Host) forgetRings(known map[identity.RingID]*ring) {
	for id, r := range known {
		if h.credentials.rings[id] == nil {
			r.erase()
		} else if h.credentials.rings[id].key != r.key {
			r.key.Erase() // the new credentials have their own copy
		}
	}
	for _, s := range h.table.byID {
		if h.credentials.rings[s.ring] == nil && s.state == open && !s.alone {
			s.dropSecret()
		}
	}
}

// advanceClock returns the latest of all times passed to the host so far, because concurrent
// calls may arrive out of order. It removes the monotonic clock reading: expiries are compared
// by wall clock, and both comparisons must agree. The caller holds the mutex.
func (h *Host) advanceClock(t time.Time) time.Time {
	if t = t.Round(0); t.After(h.newest) {
		h.newest = t
	}
	return h.newest
}

// serving returns the credentials if certificate and policy allow the unit to serve. The
// caller holds the mutex.
func (h *Host) serving(at time.Time) (*credentials, error) {
	if h.credentials == nil {
		return nil, wire.Refuse(wire.NotEnrolled, "unit: certificate", "no certificate report yet", "an enrolled unit")
	}
	if !at.Before(h.credentials.NotAfter) {
		return nil, wire.Refuse(wire.CertExpired, "unit: time", at.UTC(), h.credentials.NotAfter.UTC())
	}
	return h.credentials, h.known.cutOff(h.credentials, at)
}

// usableRing returns the ring with an id for sealing and opening sessions. It refuses, with "ring",
// a key that the unit does not have or that is older than a cut-off. The caller holds the mutex.
func (h *Host) usableRing(id identity.RingID) (*ring, error) {
	r := h.credentials.rings[id]
	if r == nil {
		return nil, wire.Refuse(wire.UnknownRing, "session: ring id", id, "a ring key of the unit")
	}
	if h.known.old[id] {
		return nil, oldRingError(id)
	}
	return r, nil
}

// ImportSession adds a session that another unit sealed. The sealed session was pushed or
// pulled over the bus, or sent by the client as its ticket. A session that the unit already has
// stays as it is, with its replay window; if its secret was dropped, it is restored.
// ImportSession returns the id of the session.
//
// It refuses with these reasons:
//   - "ring": the unit does not have the ring key
//   - "signature": the bytes were changed
//   - "identity": identity or pin differs from that of the ring key
//   - "session-over": the session has ended
//   - "expired": the session would outlive its ring key or the maximum lifetime
//   - "replayed": a second secret or expiry for a known session
//   - "overload": the table is full
func (h *Host) ImportSession(sealed []byte, at time.Time) (wire.SessionID, error) {
	u, r, err := h.unverified(envelope.Session, sealed, at)
	if err != nil {
		return wire.SessionID{}, err
	}
	s := &session{id: u.Session, expiry: u.Expiry, ring: u.Ring}
	body := h.bodies.Get().(*[]byte)
	defer h.bodies.Put(body)
	plaintext, err := r.openSealed(u, (*body)[:0])
	if err == nil {
		err = openBody(s, plaintext, r.pin)
		clear(plaintext)
	}
	if err != nil {
		return wire.SessionID{}, err
	}
	return u.Session, h.install(s, at)
}

// unverified parses a sealed session or tombstone and finds its ring. The result's fields are
// unverified until [ring.openSealed] succeeds.
func (h *Host) unverified(kind envelope.Kind, sealed []byte, at time.Time) (envelope.Sealed, *ring, error) {
	u, err := envelope.ParseSealed(kind, sealed)
	if err != nil {
		return envelope.Sealed{}, nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.advanceClock(at)
	st, err := h.serving(at)
	if err != nil {
		return envelope.Sealed{}, nil, err
	}
	if st.Group != "" && u.For != st.strict.identity && u.For != st.Identity {
		return envelope.Sealed{}, nil, wire.Refuse(wire.WrongRole, "sealed session: role", u.For, st.Role)
	}
	r, err := h.usableRing(u.Ring)
	if err != nil {
		return envelope.Sealed{}, nil, err
	}
	if u.For != r.identity {
		return envelope.Sealed{}, nil, wire.Refuse(wire.WrongIdentity, "sealed session: identity", u.For, r.identity)
	}
	return u, r, r.checkExpiry(u.Header, at)
}

// install adds a session to the table, or restores the known one. The ring key may have been
// erased while the session was decrypted, so install checks the key again, under the mutex.
func (h *Host) install(s *session, at time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table.expire(h.advanceClock(at))
	if _, err := h.usableRing(s.ring); err != nil {
		return err
	}
	known := h.table.byID[s.id]
	_, over := h.table.closed(s.id)
	if known == nil && !over {
		return h.addSession(s)
	}
	defer clear(s.secret[:]) // a second copy of the secret, or a refused secret
	switch {
	case over:
		return wire.Refuse(wire.SessionOver, "session "+s.id.String(), "closed at this unit", "an open session")
	case known.expiry != s.expiry || !known.hasSecret(s.secret):
		return wire.Refuse(wire.Replayed, "session "+s.id.String(), "a second secret or expiry", "those of the known session")
	}
	known.secret, known.state = s.secret, open
	if h.credentials.isCurrent(s.ring) || h.credentials.rings[known.ring] == nil {
		known.ring = s.ring
	}
	h.stale = h.stale || !h.credentials.isCurrent(known.ring)
	return nil
}

// addSession adds a new session to the table. If the table is full, it removes a session that
// yields. The caller holds the mutex.
func (h *Host) addSession(s *session) error {
	yields, ok := h.table.findRoom(s.opener == h.id, h.newest)
	if !ok {
		return h.refuseFull()
	}
	if _, err := h.usableRing(s.ring); err != nil && !s.alone {
		return err
	}
	if yields != nil {
		h.table.remove(yields)
	}
	h.table.insert(s)
	h.stale = h.stale || !h.credentials.isCurrent(s.ring) && !s.alone
	return nil
}

// refuseFull returns the refusal of a session for which the table has no room.
func (h *Host) refuseFull() error {
	return wire.Refuse(wire.Overload, "unit: sessions", fmt.Sprintf("%d, of those opened here %d, none of which may yield", len(h.table.byID), h.table.own.Len()),
		fmt.Sprintf("below %d, of those opened here below %d", h.limits.Sessions, h.limits.Opened))
}

// isCurrent reports whether new sessions are sealed under a ring key.
func (st *credentials) isCurrent(id identity.RingID) bool {
	return id == st.strict.key.ID() || id == st.follow.key.ID()
}

// Terminate closes a session by a tombstone that another unit sealed. A record of the session
// stays, so that no sealed copy opens it again. It refuses as [Host.ImportSession] does.
func (h *Host) Terminate(tombstone []byte, at time.Time) (wire.SessionID, error) {
	u, r, err := h.unverified(envelope.Tombstone, tombstone, at)
	if err != nil {
		return wire.SessionID{}, err
	}
	if _, err := r.openSealed(u, nil); err != nil {
		return wire.SessionID{}, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.advanceClock(at)
	h.table.expire(at)
	if _, over := h.table.closed(u.Session); over {
		return u.Session, nil
	}
	if s := h.table.byID[u.Session]; s != nil {
		h.table.terminate(s, 0, at)
	} else if !h.table.keepRecord(&record{id: u.Session, expiry: u.Expiry}, at) {
		return u.Session, wire.Refuse(wire.Overload, "unit: records of closed sessions", len(h.table.records), fmt.Sprint("below ", h.limits.Closed))
	}
	return u.Session, nil
}

// Reseal seals the sessions again whose newest sealed copy is under a ring key that is no
// longer current. It seals at most limit sessions and returns how many are left. It changes no
// expiry. It skips three kinds of sessions: those that another unit has sealed again and that
// [Host.ImportSession] received, those that stay with their opener alone, and those under a key
// older than a cut-off. A unit that was cut off may know the secrets of the last kind, and
// their clients open new sessions.
//
// A session that cannot be sealed does not delay the others and is not counted as left. Then
// Reseal returns the sealed sessions together with an error, which joins at most limit errors.
func (h *Host) Reseal(limit int, at time.Time) (sealed [][]byte, left int, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.advanceClock(at)
	h.table.expire(at)
	st, err := h.serving(at)
	if err != nil || !h.stale {
		return nil, 0, err
	}
	var faults []error
	for _, s := range h.table.byID {
		if s.state != open || s.alone || st.isCurrent(s.ring) || h.known.old[s.ring] {
			continue
		}
		if len(sealed) == limit {
			left++
			continue
		}
		b, err := h.resealSession(s)
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

// resealSession seals a session of the table under the current strict or follow ring key. The
// caller holds the mutex.
func (h *Host) resealSession(s *session) ([]byte, error) {
	r, err := h.credentials.newerRing(s.ring)
	if err == nil {
		r, err = h.usableRing(r.key.ID())
	}
	if err != nil {
		return nil, err
	}
	return h.sealSession(r, s)
}

// newerRing returns the current ring for sessions under an older ring. Sessions under a strict
// ring key stay strict; those under a follow ring key, inherited or not, stay follow. It
// refuses, with "ring", a ring id that the unit does not have, whose kind it cannot know.
func (st *credentials) newerRing(id identity.RingID) (*ring, error) {
	switch r := st.rings[id]; {
	case r == nil:
		return nil, wire.Refuse(wire.UnknownRing, "session: ring id", id, "a ring key of the unit")
	case slices.Equal(r.pin, st.strict.pin):
		return st.strict, nil
	}
	return st.follow, nil
}

// sealSession seals a session under a ring. The caller holds the mutex, or the session is not
// in the table yet.
func (h *Host) sealSession(r *ring, s *session) ([]byte, error) {
	if uint64(r.key.Expires().Unix()) < s.expiry {
		return nil, wire.Refuse(wire.Expired, "session: expiry", s.expiry, fmt.Sprint("within the ring key's end ", r.key.Expires().Unix()))
	}
	body := sealedBody(s, r.pin)
	defer clear(body)
	sealed, err := r.sealMessage(envelope.Session, r.header(s, h.id), body)
	if err != nil {
		return nil, fmt.Errorf("sealing session %s: %w", s.id, err)
	}
	s.ring = r.key.ID()
	return sealed, nil
}

// Stats contains the numbers of sessions and keys of a host.
type Stats struct {
	Sessions int `json:"sessions"` // sessions in the table, including those without a secret
	Opened   int `json:"opened"`   // sessions in the table that this unit opened
	Closed   int `json:"closed"`   // records of closed sessions
	Rings    int `json:"rings"`    // ring keys
}

// Stats returns the numbers of sessions and keys at a time.
func (h *Host) Stats(at time.Time) Stats {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table.expire(h.advanceClock(at))
	s := Stats{Sessions: len(h.table.byID), Opened: h.table.own.Len(), Closed: len(h.table.records)}
	if h.credentials != nil {
		s.Rings = len(h.credentials.rings)
	}
	return s
}
