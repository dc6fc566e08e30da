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

// OpenRequest is an open request that a unit received.
type OpenRequest struct {
	Body    []byte
	Cookie  []byte // nil if the request had none
	Number  uint64 // from the range that the manager allocated to the unit
	Pending int    // open requests in progress at this unit
}

// ServerHandshake is the unit's side of opening a session. Only one goroutine may use it.
type ServerHandshake struct {
	host    *Host
	opening parsedOpen
	number  uint64
	footing
	enc        []byte
	session    *session
	transcript attest.Digest
}

// footing is the state of the host under which a session is opened.
type footing struct {
	credentials *credentials
	ring        *ring
	head        attest.Digest // policy head of the session
	alone       bool          // the ring key is older than a known cut-off: the session is never sealed
}

// Cookie returns the cookie that a client must send with its open request. The cookie proves that
// responses reach the client before the unit spends CPU time on the request. Cookie refuses, with
// "identity", a pin that is not this unit's.
//
// A cookie contains the minute (8 bytes), and then for each ring key that opens sessions of
// the pin, inherited keys included, ring id (16) ‖ MAC (16). So every unit that shares one of
// these keys accepts the cookie, during an upgrade also units of the previous release. A unit
// before its renewal for a cut-off and a unit after it share no key: from the second of them
// the client gets a second cookie.
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

// sealingRing returns the ring key under which new sessions for the pin are sealed. It refuses with
// "identity" a pin that is not this unit's, and with "unavailable" an expired ring key: the unit
// waits for its next certificate report.
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
	if end := r.key.Expires(); !at.Before(end) {
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

// cookieValid reports whether a cookie was made for the KEM key in this or the previous
// minute. At least one MAC must be under a ring key that the unit has, and all MACs under
// such keys must be correct.
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

// parsedOpen is a parsed open request.
type parsedOpen struct {
	kemKey, nonce, pin []byte
	wants              SessionOptions
	least              []byte // policy head that the unit must have reached; empty: no requirement
}

// WantsEvidence reports whether an open request asks for fresh evidence. It returns false for
// a malformed request.
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

// Accept begins to open a session: it makes the secret and the transcript, but does not
// install the session. It refuses with these reasons:
//   - "identity": the pin is not this unit's
//   - "unavailable": the ring key has expired
//   - "cookie-wanted": the client must send the request again with the cookie of [Host.Cookie]
//   - "replayed": the KEM key was used in the last two minutes
//   - "behind": the unit has not reached the requested policy head
//   - "overload": there is no room for a session
func (h *Host) Accept(r OpenRequest, at time.Time) (*ServerHandshake, error) {
	o, err := parseOpen(r.Body)
	if err != nil {
		return nil, err
	}
	a := &ServerHandshake{host: h, opening: o, number: r.Number}
	if a.footing, at, err = h.footingFor(o, at); err != nil {
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

// Again restarts the handshake under the newest certificate report, after
// [ServerHandshake.Finish] refused with "ring" because the ring key was replaced meanwhile. It
// refuses as [Host.Accept] does, but requires no cookie.
func (a *ServerHandshake) Again(at time.Time) (err error) {
	if a.footing, at, err = a.host.footingFor(a.opening, at); err != nil {
		return err
	}
	return a.begin(at)
}

// begin makes the session with its secret, and the digest of the transcript.
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

// footingFor returns the footing for the session of a request. It refuses, with "behind", a request
// for a policy head that the unit has not reached.
func (h *Host) footingFor(o parsedOpen, at time.Time) (footing, time.Time, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.advanceClock(at)
	h.table.expire(at)
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

// spendKey marks a client's KEM key as used. It refuses a key that was used before.
func (h *Host) spendKey(kemKey []byte, at time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.spent.takeKey(kemKey, h.advanceClock(at))
}

// expiry returns the end of a session that is opened at a time, in Unix seconds: an hour later,
// or the end of the certificate or the ring key if that is earlier.
func (st *credentials) expiry(sealing *ring, at time.Time) uint64 {
	end := min(at.Unix()+unitauth.MaxSession, st.NotAfter.Unix(), sealing.key.Expires().Unix())
	return uint64(end)
}

// Evidence reports whether the client wants fresh evidence, and returns the report data for it.
func (a *ServerHandshake) Evidence() (data attest.ReportData, wanted bool, err error) {
	if a.opening.wants&WantEvidence == 0 {
		return attest.ReportData{}, false, nil
	}
	data, err = evidenceData(a.session.secret[:], a.transcript)
	return data, true, err
}

// Finish installs the session. It returns the response to the client, and the sealed session
// for all other units, or nil if the session stays with this unit alone. The parameter
// evidence is the zero Evidence if the client wants none. The parameter at is the unit's
// current time, which the response contains; making evidence may have taken a while.
//
// Finish refuses a known session id with "replayed". It refuses with "ring" if the ring key was
// replaced since [Host.Accept], or is older than a cut-off that became known since: see
// [ServerHandshake.Again].
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
