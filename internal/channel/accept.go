package channel

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// OpenRequest is an open request as it came to a unit.
type OpenRequest struct {
	Body    []byte
	Cookie  []byte // as it came along; nil when none did
	Number  uint64 // from the range that the manager allocated to the unit
	Pending int    // opens under way at this unit
}

// ServerHandshake is a session that is being opened. It is used by one goroutine.
type ServerHandshake struct {
	host    *Host
	opening parsedOpen
	number  uint64
	footing
	enc        []byte
	session    *session
	transcript attest.Digest
}

// footing is what a session is opened on.
type footing struct {
	credentials *credentials
	ring        *ring
	head        attest.Digest // that the session names
	alone       bool          // the ring is older than a cut that the unit knows: the session is sealed under none
}

// Cookie is what a client must send back with its open request: it shows that
// answers reach the client, before the unit does what is dear. It refuses, with
// "identity", a pin that is not this unit's.
//
// It is minute (8 bytes), and for each ring key that opens sessions of the pin,
// inherited ones included, ring id (16) ‖ MAC (16). So any unit that shares one of
// these takes it: those of the release before during an upgrade too. Units on both
// sides of a cut share none, so that a client gets a second cookie from the other.
func (h *Host) Cookie(open []byte, at time.Time) ([]byte, error) {
	o, err := parseOpen(open)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.advanceClock(at)
	st, err := h.serving(at)
	if err != nil {
		return nil, err
	}
	if _, err := st.sealingRing(o.pin, at); err != nil {
		return nil, err
	}
	minute := uint64(at.Unix()) / 60
	cookie := wire.Uint64(minute)
	for id, r := range st.rings {
		if !bytes.Equal(r.pin, o.pin) {
			continue
		}
		mac, err := cookieMAC(r, o.kemKey, minute)
		if err != nil {
			return nil, err
		}
		cookie = append(append(cookie, id[:]...), mac...)
	}
	return cookie, nil
}

// sealingRing is the ring key that sessions opened for the pin are sealed under. It
// refuses, with "identity", a pin that is not this unit's, and with "unavailable" a
// ring key that has ended: the unit waits for its next report.
func (st *credentials) sealingRing(pin []byte, at time.Time) (*ring, error) {
	var r *ring
	switch string(pin) {
	case string(st.strict.pin):
		r = st.strict
	case string(st.follow.pin):
		r = st.follow
	default:
		return nil, wire.Refuse(wire.WrongIdentity, "open request: pin", fmt.Sprintf("%x", pin), "this unit's identity or task")
	}
	if end := r.key.End(); !at.Before(end) {
		return nil, wire.Refuse(wire.Unavailable, "unit: end of the ring key", end.UTC(), "after "+at.UTC().String())
	}
	return r, nil
}

func cookieMAC(r *ring, kemKey []byte, minute uint64) ([]byte, error) {
	id := r.key.ID()
	key, err := r.key.Derive(32, wire.LabelCookieKey, id[:])
	if err != nil {
		return nil, err
	}
	digest := wire.Sum(kemKey)
	mac := hmac.New(sha256.New, key)
	mac.Write(wire.Frame(wire.LabelCookie, digest[:], wire.Uint64(minute)))
	return mac.Sum(nil)[:16], nil
}

// cookieValid reports whether a cookie was given for the KEM key in this minute
// or the one before: there is a MAC under a ring key that is held, and each of
// those is right.
func (st *credentials) cookieValid(got, kemKey []byte, at time.Time) (valid bool) {
	if len(got) < 8 || len(got) > maxCookie || len(got)%32 != 8 {
		return false
	}
	minute, now := binary.BigEndian.Uint64(got), uint64(at.Unix())/60
	if minute != now && minute+1 != now {
		return false
	}
	for rest := got[8:]; len(rest) > 0; rest = rest[32:] {
		r := st.rings[identity.RingID(rest[:16])]
		if r == nil {
			continue
		}
		want, err := cookieMAC(r, kemKey, minute)
		if err != nil || !hmac.Equal(rest[16:32], want) {
			return false
		}
		valid = true
	}
	return valid
}

// parsedOpen is an open request taken apart.
type parsedOpen struct {
	kemKey, nonce, pin []byte
	wants              SessionOptions
	least              []byte // policy head that the unit must have got to; empty: none
}

// WantsEvidence reports whether an open request wants fresh evidence. One that does not
// parse wants none.
func WantsEvidence(open []byte) bool {
	o, err := parseOpen(open)
	return err == nil && o.wants&WantEvidence != 0
}

func parseOpen(b []byte) (parsedOpen, error) {
	if len(b) > MaxOpenRequest {
		return parsedOpen{}, wire.Refuse(wire.TooLarge, "open request: size in bytes", len(b), MaxOpenRequest)
	}
	var f [6][]byte
	if err := wire.UnframeInto(f[:], wire.LabelSessionOpen, b); err != nil {
		return parsedOpen{}, err
	}
	if len(f[0]) != 1 || f[0][0] != envelope.Suite {
		return parsedOpen{}, wire.Refuse(wire.Malformed, "open request: suite", f[0], envelope.Suite)
	}
	if len(f[1]) != kemKeySize || len(f[2]) != nonceSize || len(f[4]) != 1 {
		return parsedOpen{}, wire.Refuse(wire.Malformed, "open request: sizes", fmt.Sprintf("%d, %d and %d", len(f[1]), len(f[2]), len(f[4])), "1216, 32 and 1 byte")
	}
	wants := SessionOptions(f[4][0])
	if wants&^(WantEvidence|WantReceipts|wantHead) != 0 {
		return parsedOpen{}, wire.Refuse(wire.Malformed, "open request: options", wants, "known bits")
	}
	named := len(f[5]) == len(attest.Digest{}) && !attest.Digest(f[5]).IsZero()
	if named != (wants&wantHead != 0) || !named && len(f[5]) > 0 {
		return parsedOpen{}, wire.Refuse(wire.Malformed, "open request: least policy head", len(f[5]), "32 bytes with option bit 2, 0 without")
	}
	return parsedOpen{kemKey: f[1], nonce: f[2], pin: f[3], wants: wants, least: f[5]}, nil
}

// Accept begins to open a session: it makes the secret and the transcript, and
// installs nothing yet. It refuses, with "identity", a pin that is not this
// unit's, with "unavailable" while the unit's ring key has ended, with
// "cookie-wanted" a request that must come again with [Host.Cookie], with "replayed"
// one whose KEM key was taken in the last two minutes, with "behind" one that wants a
// policy head which the unit has not got to, and with "overload" when there is no
// room.
func (h *Host) Accept(r OpenRequest, at time.Time) (*ServerHandshake, error) {
	o, err := parseOpen(r.Body)
	if err != nil {
		return nil, err
	}
	a := &ServerHandshake{host: h, opening: o, number: r.Number}
	if at, err = a.admit(at); err != nil {
		return nil, err
	}
	expensive := o.wants&WantEvidence != 0 || r.Pending > h.limits.Cookies
	if expensive && !a.credentials.cookieValid(r.Cookie, o.kemKey, at) {
		return nil, wire.Refuse(wire.CookieWanted, "open request: cookie", fmt.Sprint(len(r.Cookie), " bytes that do not verify"), "the cookie of this response")
	}
	if err := h.spendKey(o.kemKey, at); err != nil {
		return nil, err
	}
	return a, a.begin(at)
}

// Again begins once more under the newest certificate report, after [ServerHandshake.Finish]
// refused with "ring": the ring was replaced meanwhile. It refuses as
// [Host.Accept] does, but asks for no cookie.
func (a *ServerHandshake) Again(at time.Time) error {
	at, err := a.admit(at)
	if err != nil {
		return err
	}
	return a.begin(at)
}

// admit takes what the unit is now, and the ring key of the pin.
func (a *ServerHandshake) admit(at time.Time) (_ time.Time, err error) {
	a.footing, at, err = a.host.footingFor(a.opening, at)
	return at, err
}

// begin makes the secret and the transcript.
func (a *ServerHandshake) begin(at time.Time) error {
	o, st := a.opening, a.credentials
	enc, shared, err := encapsulate(o.kemKey)
	if err != nil {
		return err
	}
	t := &transcript{
		kemKey: o.kemKey, nonce: o.nonce, pin: o.pin, wants: o.wants, least: o.least, enc: enc,
		unit: a.host.id, identity: st.Identity, root: st.Root, chain: wire.Sum(st.chain),
		ring: a.ring.key.ID(), head: a.head, expiry: st.expiry(a.ring, at),
	}
	a.enc = enc
	a.session = &session{id: t.sessionID(a.number), expiry: t.expiry, head: t.head, opener: a.host.id, ring: t.ring, alone: a.alone}
	a.transcript = t.digest(a.session.id)
	a.session.secret, err = sessionSecret(shared, a.transcript)
	return err
}

// footingFor gives what a session for the request may be opened on. It refuses, with
// "behind", a request that wants a policy head which the unit has not got to.
func (h *Host) footingFor(o parsedOpen, at time.Time) (footing, time.Time, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.advanceClock(at)
	h.expire(at)
	st, err := h.serving(at)
	if err != nil {
		return footing{}, at, err
	}
	if _, ok := h.table.findRoom(true, at); !ok {
		return footing{}, at, h.refuseFull()
	}
	r, err := st.sealingRing(o.pin, at)
	if err != nil {
		return footing{}, at, err
	}
	if o.wants&wantHead != 0 && !h.known.hasReached(attest.Digest(o.least)) {
		return footing{}, at, wire.Refuse(wire.Behind, "open request: least policy head", attest.Digest(o.least), "at most that of the unit: "+h.known.head.String())
	}
	return footing{credentials: st, ring: r, head: h.known.head, alone: h.known.old[r.key.ID()]}, at, nil
}

// spendKey takes a client's KEM key, once.
func (h *Host) spendKey(kemKey []byte, at time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.spent.takeKey(kemKey, h.advanceClock(at))
}

// expiry is when a session that is opened now ends: within an hour, the
// certificate, and the ring key.
func (st *credentials) expiry(sealing *ring, at time.Time) uint64 {
	end := min(at.Unix()+unitauth.MaxSession, st.NotAfter.Unix(), sealing.key.End().Unix())
	return uint64(end)
}

// Evidence is the report data of the fresh evidence that the client wants, and
// whether it wants any.
func (a *ServerHandshake) Evidence() (data attest.ReportData, wanted bool, err error) {
	if a.opening.wants&WantEvidence == 0 {
		return attest.ReportData{}, false, nil
	}
	data, err = evidenceData(a.session.secret[:], a.transcript)
	return data, true, err
}

// Finish installs the session and gives the answer to the client, and the sealed
// session for all other units, nil of one that is sealed for none. Evidence is the
// zero Evidence where none is wanted. It refuses, with "replayed", an id that is known
// already, and with "ring" a session whose ring was replaced, or is older than a cut
// that became known, since [Host.Accept]: see [ServerHandshake.Again].
// At is the unit's time, which the response names: making evidence takes a while.
func (a *ServerHandshake) Finish(evidence attest.Evidence, at time.Time) (response, sealed []byte, err error) {
	var text []byte
	if a.opening.wants&WantEvidence != 0 {
		if text, err = evidence.MarshalJSON(); err != nil {
			return nil, nil, fmt.Errorf("encoding evidence: %w", err)
		}
	}
	h, s := a.host, a.session
	var ticket []byte
	if !s.alone {
		if ticket, err = h.sealSession(a.ring, s); err != nil {
			return nil, nil, err
		}
	}
	digest, ticketDigest := wire.Sum(text), wire.Sum(ticket)
	now := unitauth.TimeBytes(at)
	signature, err := unitauth.SignFields(h.key, wire.LabelSessionSignature, a.transcript[:], digest[:], ticketDigest[:], now)
	if err != nil {
		return nil, nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, over := h.table.closed(s.id); over || h.table.byID[s.id] != nil {
		return nil, nil, wire.Refuse(wire.Replayed, "session "+s.id.String(), "a known id", "a new id")
	}
	if err := h.addSession(s); err != nil {
		return nil, nil, err
	}
	st := a.credentials
	return wire.Frame(wire.LabelSessionResponse, a.enc, s.id[:], h.id[:], st.Identity[:], s.ring[:], s.head[:],
		wire.Uint64(s.expiry), st.chain, signature, text, ticket, now), ticket, nil
}
