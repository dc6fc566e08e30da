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
	"github.com/cohort-tee/cohort/internal/wire"
)

// OpenRequest is an open request as it came to a unit.
type OpenRequest struct {
	Body    []byte
	Cookie  []byte // as it came along; nil when none did
	Number  uint64 // from the range that the manager allocated to the unit
	Pending int    // opens under way at this unit
}

// Acceptance is a session that is being opened. It is used by one goroutine.
type Acceptance struct {
	host       *Host
	standing   *standing
	ring       *ring
	wants      Wants
	enc        []byte
	session    *session
	transcript attest.Digest
}

// Cookie is what a client must send back with its open request: it shows that
// answers reach the client, before the unit does what is dear. It refuses, with
// "identity", a pin that is not this unit's.
//
// It is minute (8 bytes), and for each ring key that opens sessions of the pin,
// inherited ones included, ring id (16) ‖ MAC (16). So any unit that shares one of
// these takes it: those of the release before during an upgrade, and those whose
// certificates are not renewed yet when a ring has been cut.
func (h *Host) Cookie(open []byte, at time.Time) ([]byte, error) {
	o, kemKey, err := parseOpen(open)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.at(at)
	st, err := h.serving(at)
	if err != nil {
		return nil, err
	}
	if _, err := st.sealing(o.pin); err != nil {
		return nil, err
	}
	minute := uint64(at.Unix()) / 60
	cookie := wire.Uint64(minute)
	for id, r := range st.rings {
		if !bytes.Equal(r.pin, o.pin) {
			continue
		}
		mac, err := cookieMAC(r, kemKey, minute)
		if err != nil {
			return nil, err
		}
		cookie = append(append(cookie, id[:]...), mac...)
	}
	return cookie, nil
}

// sealing is the ring key that sessions opened for the pin are sealed under.
func (st *standing) sealing(pin []byte) (*ring, error) {
	switch string(pin) {
	case string(st.strict.pin):
		return st.strict, nil
	case string(st.follow.pin):
		return st.follow, nil
	}
	return nil, wire.Refuse(wire.WrongIdentity, "open request: pin", "another", "this unit's identity or task")
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

// cookieHolds reports whether a cookie was given for the KEM key in this minute
// or the one before: there is a MAC under a ring key that is held, and each of
// those is right.
func (st *standing) cookieHolds(got, kemKey []byte, at time.Time) (holds bool) {
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
		holds = true
	}
	return holds
}

// opening is an open request taken apart.
type opening struct {
	pin   []byte
	nonce []byte
	wants Wants
}

func parseOpen(b []byte) (o opening, kemKey []byte, err error) {
	if len(b) > maxOpen {
		return opening{}, nil, wire.Refuse(wire.TooLarge, "open request: size in bytes", len(b), maxOpen)
	}
	var f [5][]byte
	if err := wire.UnframeInto(f[:], wire.LabelSessionOpen, b); err != nil {
		return opening{}, nil, err
	}
	if len(f[0]) != 1 || f[0][0] != suite {
		return opening{}, nil, wire.Refuse(wire.Malformed, "open request: suite", f[0], suite)
	}
	if len(f[1]) != kemKeySize || len(f[2]) != nonceSize || len(f[4]) != 1 {
		return opening{}, nil, wire.Refuse(wire.Malformed, "open request: sizes", "others", "1216, 32 and 1 byte")
	}
	wants := Wants(f[4][0])
	if wants&^(WantEvidence|WantReceipts) != 0 {
		return opening{}, nil, wire.Refuse(wire.Malformed, "open request: wants", wants, "known bits")
	}
	return opening{pin: f[3], nonce: f[2], wants: wants}, f[1], nil
}

// Accept begins to open a session: it makes the secret and the transcript, and
// installs nothing yet. It refuses, with "identity", a pin that is not this
// unit's, with "cookie-wanted" a request that must come again with
// [Host.Cookie], and with "overload" when there is no room.
func (h *Host) Accept(r OpenRequest, at time.Time) (*Acceptance, error) {
	o, kemKey, err := parseOpen(r.Body)
	if err != nil {
		return nil, err
	}
	st, at, err := h.admit(at)
	if err != nil {
		return nil, err
	}
	sealing, err := st.sealing(o.pin)
	if err != nil {
		return nil, err
	}
	dear := o.wants&WantEvidence != 0 || r.Pending > h.limits.Cookies
	if dear && !st.cookieHolds(r.Cookie, kemKey, at) {
		return nil, wire.Refuse(wire.CookieWanted, "open request: cookie", "none that holds", "that of this answer")
	}
	enc, shared, err := encapsulate(kemKey)
	if err != nil {
		return nil, err
	}
	t := &transcript{
		kemKey: kemKey, nonce: o.nonce, pin: o.pin, wants: o.wants, enc: enc,
		unit: h.id, identity: st.Identity, root: st.Root, chain: wire.Sum(st.chain),
		ring: sealing.key.ID(), head: st.Head, expiry: st.expiry(sealing, at),
	}
	a := &Acceptance{host: h, standing: st, ring: sealing, wants: o.wants, enc: enc}
	a.session = &session{id: t.sessionID(r.Number), expiry: t.expiry, head: t.head, opener: h.id, ring: t.ring}
	a.transcript = t.digest(a.session.id)
	a.session.secret, err = sessionSecret(shared, a.transcript)
	return a, err
}

// admit gives the standing that a session may be opened under.
func (h *Host) admit(at time.Time) (*standing, time.Time, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	at = h.at(at)
	h.expire(at)
	st, err := h.serving(at)
	if err != nil {
		return nil, at, err
	}
	if h.opened >= h.limits.Opened || len(h.table.byID) >= h.limits.Sessions {
		return nil, at, wire.Refuse(wire.Overload, "unit: sessions", len(h.table.byID), "room for another")
	}
	return st, at, nil
}

// expiry is when a session that is opened now ends: within an hour, the
// certificate, and the ring key.
func (st *standing) expiry(sealing *ring, at time.Time) uint64 {
	end := min(at.Unix()+maxSession, st.NotAfter.Unix(), sealing.key.End().Unix())
	return uint64(end)
}

// Evidence is the report data of the fresh evidence that the client wants, and
// whether it wants any.
func (a *Acceptance) Evidence() (data attest.ReportData, wanted bool, err error) {
	if a.wants&WantEvidence == 0 {
		return attest.ReportData{}, false, nil
	}
	data, err = evidenceData(a.session.secret[:], a.transcript)
	return data, true, err
}

// Finish installs the session and gives the answer to the client, and the sealed
// session for all other units. Evidence is the zero Evidence where none is
// wanted. It refuses, with "replayed", an id that is known already.
func (a *Acceptance) Finish(evidence attest.Evidence) (answer, sealed []byte, err error) {
	var text []byte
	if a.wants&WantEvidence != 0 {
		if text, err = evidence.MarshalJSON(); err != nil {
			return nil, nil, fmt.Errorf("encoding evidence: %w", err)
		}
	}
	h, s := a.host, a.session
	ticket, err := h.seal(a.standing, a.ring, s)
	if err != nil {
		return nil, nil, err
	}
	digest, ticketDigest := wire.Sum(text), wire.Sum(ticket)
	signature, err := sign(h.key, wire.LabelSessionSignature, a.transcript[:], digest[:], ticketDigest[:])
	if err != nil {
		return nil, nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.table.byID[s.id] != nil {
		return nil, nil, wire.Refuse(wire.Replayed, "session "+s.id.String(), "a known id", "a new one")
	}
	if err := h.add(s); err != nil {
		return nil, nil, err
	}
	st := a.standing
	return wire.Frame(wire.LabelSessionAnswer, a.enc, s.id[:], h.id[:], st.Identity[:], s.ring[:], s.head[:],
		wire.Uint64(s.expiry), st.chain, signature, text, ticket), ticket, nil
}
