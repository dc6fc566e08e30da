package channel

import (
	"crypto/hpke"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// ClientHandshake makes an open request of a client and verifies the response. Only one
// goroutine may use it at a time.
type ClientHandshake struct {
	key     hpke.PrivateKey
	pin     unitauth.Pin
	wants   SessionOptions
	least   []byte // policy head that the unit must have reached; empty: no requirement
	nonce   []byte
	request []byte
	hidden  func(attest.TPMKeys) []byte // secret in the credential of the challenged unit; nil: no challenge
}

// NewClientHandshake makes an open request with a new KEM key. It refuses, with "request", a pin
// that does not name exactly one identity, task or group.
func NewClientHandshake(pin unitauth.Pin, wants SessionOptions) (*ClientHandshake, error) {
	return NewClientHandshakeSince(pin, wants, attest.Digest{})
}

// NewClientHandshakeSince makes an open request with a least policy head. Units that have not
// reached that head refuse it with "behind". The zero head sets no requirement.
func NewClientHandshakeSince(pin unitauth.Pin, wants SessionOptions, least attest.Digest) (*ClientHandshake, error) {
	if err := pin.Validate(); err != nil {
		return nil, err
	}
	if wants&wantHead != 0 {
		return nil, wire.Refuse(wire.BadRequest, "session: options", wants, "evidence and receipts; the head is a parameter")
	}
	o := &ClientHandshake{pin: pin, wants: wants, nonce: make([]byte, nonceSize)}
	if !least.IsZero() {
		o.wants, o.least = wants|wantHead, least[:]
	}
	rand.Read(o.nonce) // never returns an error: it ends the program instead
	var err error
	wire.Secretly(func() { o.key, err = hpke.MLKEM768X25519().GenerateKey() })
	if err != nil {
		return nil, fmt.Errorf("making a KEM key: %w", err)
	}
	o.request = wire.Frame(wire.LabelSessionOpen, []byte{envelope.Suite}, o.kemKey(), o.nonce, pin.Encode(), []byte{byte(o.wants)}, o.least)
	return o, nil
}

func (o *ClientHandshake) kemKey() []byte { return o.key.PublicKey().Bytes() }

// Request returns the content of the open request. The caller must not change it.
func (o *ClientHandshake) Request() []byte { return o.request }

// openResponse is a parsed response. Its values are not verified.
type openResponse struct {
	enc, session, unit, identity, ring, head, expiry []byte
	chain, signature, evidence, ticket, time         []byte
}

// unverifiedResponse parses a response and checks the size of every field.
func unverifiedResponse(b []byte) (openResponse, error) {
	if len(b) > MaxOpenResponse {
		return openResponse{}, wire.Refuse(wire.TooLarge, "session response: size in bytes", len(b), MaxOpenResponse)
	}
	f := make([][]byte, 12)
	if err := wire.UnframeInto(f, wire.LabelSessionResponse, b); err != nil {
		return openResponse{}, err
	}
	for i, size := range []int{encSize, 24, 16, 32, 16, 32, 8} {
		if len(f[i]) != size {
			return openResponse{}, wire.Refuse(wire.Malformed, fmt.Sprint("session response: size of field ", i+1), len(f[i]), size)
		}
	}
	if len(f[11]) != 8 {
		return openResponse{}, wire.Refuse(wire.Malformed, "session response: size of field 12", len(f[11]), 8)
	}
	if len(f[7]) > unitauth.MaxChain || len(f[10]) > envelope.MaxSealed {
		return openResponse{}, wire.Refuse(wire.TooLarge, "session response: size of chain and ticket", len(f[7])+len(f[10]), unitauth.MaxChain+envelope.MaxSealed)
	}
	return openResponse{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], f[11]}, nil
}

// UnverifiedOpener returns the unit that a response to an open request names, without
// verification. It returns zero for a malformed response.
func UnverifiedOpener(b []byte) (unit wire.UnitID) {
	if a, err := unverifiedResponse(b); err == nil {
		copy(unit[:], a.unit)
	}
	return unit
}

// Finish verifies the response to the request and returns the session. The caller may call it
// again with the same response and newer trust.
//
// It refuses with these reasons:
//   - "behind": trust does not know the unit's policy head (newer trust may), or the session is
//     shared under ring keys older than a cut-off that trust knows, or the unit has not reached
//     the required head
//   - a reason of [identity.Check]: the unit is outside the pin
//   - "cut-off": trust cuts the unit off
//   - "signature": the unit did not sign the response for this request
//   - "clock": the unit's time differs from at by more than 5 minutes
//   - "evidence-missing": the wanted evidence is missing
//   - a reason of appraisal or admission: the evidence fails them
func (o *ClientHandshake) Finish(b []byte, trust unitauth.Trust, at time.Time) (*Session, error) {
	a, err := unverifiedResponse(b)
	if err != nil {
		return nil, err
	}
	claims := unitauth.SignerClaims{Head: a.head, Unit: a.unit, Identity: a.identity, Expiry: a.expiry}
	peer, err := trust.Signer(a.chain, o.pin, claims, at)
	if err != nil {
		return nil, err
	}
	alone := len(a.ticket) == 0
	if err := o.checkCaughtUp(attest.Digest(a.head), alone, trust.Policy, peer); err != nil {
		return nil, err
	}
	t := o.transcript(a, trust, peer)
	id := wire.SessionID(a.session)
	if want := t.sessionID(id.Range()); id != want {
		return nil, wire.Refuse(wire.BadDigest, "session response: session id", id, want)
	}
	digest, evidence, ticket := t.digest(id), wire.Sum(a.evidence), wire.Sum(a.ticket)
	if err := unitauth.VerifyFields(peer.PublicKey(), a.signature, wire.LabelSessionSignature, digest[:], evidence[:], ticket[:], a.time); err != nil {
		return nil, err
	}
	unitTime, err := unitauth.ParseTime(a.time)
	if err != nil {
		return nil, err
	}
	if err := unitauth.CheckSkew(unitTime, at); err != nil {
		return nil, err
	}
	shared, err := decapsulate(o.key, a.enc)
	if err != nil {
		return nil, err
	}
	s := &Session{id: id, peer: peer, alone: alone, holders: o.pin.Holders(peer), head: t.head, expires: time.Unix(int64(t.expiry), 0), wants: o.wants, ticket: a.ticket, unitTime: unitTime}
	if s.secret, err = sessionSecret(shared, digest); err != nil {
		return nil, err
	}
	if o.wants&WantEvidence != 0 {
		data, err := evidenceData(s.secret[:], digest)
		if err == nil {
			s.evidence, err = trust.Appraise(a.evidence, attest.Question{ReportData: data, Secret: o.hidden, At: at}, peer)
		}
		if err != nil {
			return nil, fmt.Errorf("appraising fresh evidence: %w", err)
		}
	}
	return s, nil
}

// ErrBeforeCut is the refusal of a session that is shared under ring keys of a cut-off unit. The
// unit that opened the session does not know the cut-off yet.
var ErrBeforeCut = wire.Refuse(wire.Behind, "session response: policy head", "a head before a cut, of a session that is sealed for other units", "a head since the cut, or a session without a ticket")

// checkCaughtUp refuses, with "behind", a session of a unit that has not reached the required
// policy head. If the session is shared, it also refuses a unit that has not reached the last
// cut-off of units that have the ring key.
func (o *ClientHandshake) checkCaughtUp(head attest.Digest, alone bool, p policy.Approved, peer identity.Peer) error {
	if o.wants&wantHead != 0 {
		got, _ := p.Index(head) // known: Trust.Signer has checked it
		if least, known := p.Index(attest.Digest(o.least)); !known || got < least {
			return wire.Refuse(wire.Behind, "session response: policy head", head, "the wanted head, or a later one: "+attest.Digest(o.least).String())
		}
	}
	if !alone && identity.RingCutSince(p, o.pin.Holders(peer), head) {
		return ErrBeforeCut
	}
	return nil
}

// transcript returns the transcript of the handshake. Values that the certificates contain are
// from the certificates, not from the response.
func (o *ClientHandshake) transcript(a openResponse, trust unitauth.Trust, peer identity.Peer) *transcript {
	return &transcript{
		kemKey: o.kemKey(), nonce: o.nonce, pin: o.pin.Encode(), wants: o.wants, least: o.least, enc: a.enc,
		unit: peer.UnitID(), identity: peer.ID(), root: trust.Policy.Document().Authority.Root, chain: wire.Sum(a.chain),
		ring: identity.RingID(a.ring), head: attest.Digest(a.head), expiry: binary.BigEndian.Uint64(a.expiry),
	}
}

// Challenge makes a challenge for the unit in an introduction, and returns that unit and the
// credential for it. From then on [ClientHandshake.Finish] accepts only evidence of that unit's
// device and key.
func (o *ClientHandshake) Challenge(introduction []byte, verifier *attest.Verifier) (unit wire.UnitID, credential []byte, err error) {
	in, err := unitauth.UnverifiedIntroduction(introduction)
	if err != nil {
		return wire.UnitID{}, nil, err
	}
	challenge, err := verifier.Challenge(attest.TPM, in.TPMKeys)
	if err != nil {
		return wire.UnitID{}, nil, err
	}
	o.hidden = challenge.SecretFor
	return in.Unit, challenge.Credential, nil
}

// Unchallenge drops the challenge.
func (o *ClientHandshake) Unchallenge() { o.hidden = nil }
