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

// Limits bound the sessions and requests of a host. Zero fields take the defaults.
type Limits struct {
	Sessions int // in the table, of all units; 131,072
	Opened   int // of those, opened by this unit; a quarter
	Closed   int // records of closed sessions; 65,536
	Cookies  int // opens under way above which a cookie is demanded; 8
	OneOffs  int // one-off requests under way; 512
}

// UnitCredentials are the certificates and keys of a unit by its newest certificate
// report. The host owns the ring keys: it erases those that later credentials lack.
type UnitCredentials struct {
	Task     string
	Group    string // and Role, where the unit works in a group: then strict ring
	Role     string // keys are its role's, and follow ring keys the whole group's
	Identity attest.Digest
	Genesis  attest.Digest
	Root     attest.Digest // of the authority
	Head     attest.Digest // of the policy
	Unit     []byte        // certificate of the signing key, DER
	Cross    []byte        // cross-certificate, in a group the group root, DER
	NotAfter time.Time     // of the unit certificate
	OneOff   bool          // policy lets one-off requests be marked instead of safe
	Facts    policy.Facts  // about the unit, in its certificate
	Ring     identity.Ring
}

// Host is the unit's side of all its sessions. The zero Host serves nothing. It
// is safe for concurrent use.
//
// The times that are passed to it are the unit's own, which never go back: a clock that
// went back would revive sessions whose replay windows are gone. If two times arrive in
// another order than they were read, the later one counts.
type Host struct {
	id        wire.UnitID
	key       *ecdsa.PrivateKey
	limits    Limits
	bodies    sync.Pool  // of *[]byte, for plaintext of sealed sessions
	chunks    chunk.Pool // of requests
	responses sync.Pool  // of *[]byte, for chunks of responses

	mu          watchedMutex // guards all below
	newest      time.Time
	credentials *credentials // nil before the first Update
	known       knownPolicy  // of policy, beside the credentials
	table       table
	spent       usedKEMKeys // KEM keys of clients
	stale       bool        // a session in the table may want to be sealed anew
}

// credentials are UnitCredentials ready for use. They are immutable.
type credentials struct {
	UnitCredentials
	chain  []byte // Frame("cohort chain v1", unit certificate, cross-certificate)
	strict *ring  // current, for sessions pinned to code
	follow *ring  // current, for sessions opened by task name
	rings  map[identity.RingID]*ring
}

// NewHost makes the host of a unit's signing key. It has no session and no ring until
// [Host.Update].
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

// Limits returns the limits, with the defaults filled in.
func (h *Host) Limits() Limits { return h.limits }

// TaskName returns the task of the unit's credentials; empty before the first.
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

// Update makes s the credentials of the unit. Ring keys that are not in s are erased, and
// with them the secrets of sessions that were not sealed again under another key; their
// replay windows stay. Update refuses, with "identity", a certificate of another key,
// and with "ring" credentials without current keys.
//
// A ring key that is older than a cut which s.Head knows is not used, whatever its source.
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
	then, _ := h.known.policy.AtHead(s.Head) // the policy of this report; zero if it is not followed yet
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

// checkOwner refuses credentials of another unit.
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

// ringOfKey returns the ring of a key, with the derived keys and the age of the ring that
// the unit already has of it.
func ringOfKey(known *ring, key *identity.RingKey, of attest.Digest, pin []byte) *ring {
	r := &ring{key: key, identity: of, pin: pin}
	if known != nil {
		r.derived, r.since = known.derived, known.since
	} else {
		r.derived = &derived{seals: map[wire.UnitID]*sealKey{}}
	}
	return r
}

// forgetRings erases the rings that are no longer in the credentials and drops the
// secrets whose newest sealed copy is under one. A session that was sealed under none stays.
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

// advanceClock orders the times that several calls have read: it returns the newest that
// was passed so far. It removes a monotonic reading, because expiries are compared by
// the wall clock, and the two must not differ. The caller holds the mutex.
func (h *Host) advanceClock(t time.Time) time.Time {
	if t = t.Round(0); t.After(h.newest) {
		h.newest = t
	}
	return h.newest
}

// serving returns the credentials, if certificate and policy let the unit serve. The
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

// usableRing returns the ring of a key that sessions are sealed and opened under. It
// refuses, with "ring", a key that the unit does not have or that is older than a cut.
// The caller holds the mutex.
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

// ImportSession adds a session that another unit sealed: pushed, pulled, or sent by the
// client as its ticket. A session that the unit already has stays as it is, with its
// window; one whose secret was dropped gets it back. It returns the id of the session.
//
// It refuses with "ring" a ring key that the unit does not have, with
// "signature" changed bytes, with "identity" another identity or pin than that of
// the ring key, with "session-over" or "expired" a session that has ended or would
// outlive its ring key, with "replayed" a second secret for a known session,
// and with "overload" when the table is full.
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

// unverified parses a sealed session or tombstone and finds its ring. Its fields are
// unverified until it is opened.
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

// install puts a session into the table, or refreshes the one that is there. Its ring
// key may have been erased while the session was opened, so install checks it again,
// under the mutex.
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
	defer clear(s.secret[:]) // a second copy, or a refused one
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

// addSession puts a new session into the table, in the place of one that yields when the
// table is full. The caller holds the mutex.
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

// refuseFull returns the refusal of one more session.
func (h *Host) refuseFull() error {
	return wire.Refuse(wire.Overload, "unit: sessions", fmt.Sprintf("%d, of those opened here %d, none of which may yield", len(h.table.byID), h.table.own.Len()),
		fmt.Sprintf("below %d, of those opened here below %d", h.limits.Sessions, h.limits.Opened))
}

// isCurrent reports whether new sessions are sealed under a ring key.
func (st *credentials) isCurrent(id identity.RingID) bool {
	return id == st.strict.key.ID() || id == st.follow.key.ID()
}

// Terminate ends a session by the tombstone that another unit sealed. A record of it
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

// Reseal seals sessions anew whose newest sealed copy is under a ring key that
// is no longer current, at most limit of them, and returns how many are left. It moves
// no expiry. It skips a session that another unit has sealed anew and that came by
// [Host.ImportSession], one that is sealed under no key, and one under a key older than
// a cut: a unit that was cut off may know its secret, and the client opens another.
//
// A session that cannot be sealed does not delay others and is not counted as left: the
// sealed ones are returned beside the error, which joins at most limit.
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

// resealSession seals a session of the table under the current ring key of its kind. The
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

// newerRing returns the current ring for sessions under a ring that is not current: strict
// ones stay strict, and those that follow a task by name, inherited or not, follow on. It
// refuses, with "ring", a ring that the unit does not have: the kind is unknown.
func (st *credentials) newerRing(id identity.RingID) (*ring, error) {
	switch r := st.rings[id]; {
	case r == nil:
		return nil, wire.Refuse(wire.UnknownRing, "session: ring id", id, "a ring key of the unit")
	case slices.Equal(r.pin, st.strict.pin):
		return st.strict, nil
	}
	return st.follow, nil
}

// sealSession seals a session under a ring. The session is guarded by the mutex, or not
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

// Stats count the sessions and keys of a host.
type Stats struct {
	Sessions int `json:"sessions"` // in the table, dropped ones included
	Opened   int `json:"opened"`   // of those, opened by this unit
	Closed   int `json:"closed"`   // records of closed sessions
	Rings    int `json:"rings"`    // ring keys
}

// Stats counts the sessions and keys of the host at a time.
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
