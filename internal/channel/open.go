package channel

import (
	"crypto/hpke"
	"crypto/rand"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Trust is what a client judges an answer by.
type Trust struct {
	Policy policy.Approved
	Root   *x509.Certificate // of the authority that Policy names
	// Approvers are the keys of the party that must approve a group, as in
	// [identity.Expect]; without them the owners choose its parties.
	Approvers []attest.Digest
	// Verifier appraises fresh evidence; nil appraises none.
	Verifier *attest.Verifier
	// Endorsements of fresh evidence, where its platform needs any.
	Endorsements attest.Endorsements
}

// Opening is one open request of a client, waiting for its answer. It is used by
// one goroutine at a time.
type Opening struct {
	key     hpke.PrivateKey
	pin     Pin
	wants   Wants
	least   []byte // policy head that the unit must have got to; empty: none
	nonce   []byte
	request []byte
	hidden  func(attest.Introduction) []byte // from the unit that was challenged; nil: none was
}

// NewOpening makes an open request with a KEM key of its own. It refuses, with
// "request", a pin that is not exactly one.
func NewOpening(pin Pin, wants Wants) (*Opening, error) {
	return NewOpeningSince(pin, wants, attest.Digest{})
}

// NewOpeningSince is [NewOpening] for a unit that has got to a policy head: others
// refuse with "behind". The zero head is none.
func NewOpeningSince(pin Pin, wants Wants, least attest.Digest) (*Opening, error) {
	if err := pin.Check(); err != nil {
		return nil, err
	}
	if wants&WantHead != 0 {
		return nil, wire.Refuse(wire.BadRequest, "session: wants", wants, "evidence and receipts; the head beside them")
	}
	o := &Opening{pin: pin, wants: wants, nonce: make([]byte, nonceSize)}
	if !least.IsZero() {
		o.wants, o.least = wants|WantHead, least[:]
	}
	rand.Read(o.nonce) // never returns an error: it ends the program instead
	var err error
	wire.Secretly(func() { o.key, err = hpke.MLKEM768X25519().GenerateKey() })
	if err != nil {
		return nil, fmt.Errorf("making a KEM key: %w", err)
	}
	o.request = wire.Frame(wire.LabelSessionOpen, []byte{envelope.Suite}, o.kemKey(), o.nonce, pin.bytes(), []byte{byte(o.wants)}, o.least)
	return o, nil
}

func (o *Opening) kemKey() []byte { return o.key.PublicKey().Bytes() }

// Request is the body of the open request. The caller does not change it.
func (o *Opening) Request() []byte { return o.request }

// answer is an answer taken apart; nothing in it is checked yet.
type answer struct {
	enc, session, unit, identity, ring, head, expiry []byte
	chain, signature, evidence, ticket, time         []byte
}

// unverifiedAnswer takes an answer apart and demands the size of every field.
func unverifiedAnswer(b []byte) (answer, error) {
	if len(b) > MaxOpenResponse {
		return answer{}, wire.Refuse(wire.TooLarge, "session answer: size in bytes", len(b), MaxOpenResponse)
	}
	f := make([][]byte, 12)
	if err := wire.UnframeInto(f, wire.LabelSessionAnswer, b); err != nil {
		return answer{}, err
	}
	for i, size := range []int{encSize, 24, 16, 32, 16, 32, 8} {
		if len(f[i]) != size {
			return answer{}, wire.Refuse(wire.Malformed, fmt.Sprint("session answer: size of field ", i+1), len(f[i]), size)
		}
	}
	if len(f[11]) != 8 {
		return answer{}, wire.Refuse(wire.Malformed, "session answer: size of field 12", len(f[11]), 8)
	}
	if len(f[7]) > maxChain || len(f[10]) > envelope.MaxSealed {
		return answer{}, wire.Refuse(wire.TooLarge, "session answer: size of chain and ticket", len(f[7])+len(f[10]), maxChain+envelope.MaxSealed)
	}
	return answer{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10], f[11]}, nil
}

// UnverifiedOpener is the unit that an answer to an open request names; zero where the
// answer does not parse. Nothing of it is checked.
func UnverifiedOpener(b []byte) (unit wire.UnitID) {
	if a, err := unverifiedAnswer(b); err == nil {
		copy(unit[:], a.unit)
	}
	return unit
}

// parseChain reads Frame("cohort chain v1", unit certificate, cross-certificate).
func parseChain(b []byte) ([]*x509.Certificate, error) {
	ders, err := wire.Unframe(wire.LabelChain, b, 2)
	if err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	for _, der := range ders {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, wire.Refuse(wire.BadChain, "chain: certificate", err, "DER")
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// Finish judges the answer to the request and gives the session. It may be
// called again with the same answer and newer trust.
//
// It refuses with "behind" a policy head that trust does not know, which newer
// trust may, and a session that is shared under ring keys older than a cut which
// trust knows, or of a unit that has not got to the head wanted; with the reasons of
// [identity.Check] a unit that is not what the pin says, and with "cut-off" one that
// trust cuts off; with "signature" an answer that the unit did not give to this
// request; with "clock" a unit whose time is more than 5 minutes from at; with
// "evidence-missing" wanted evidence that is not there, and with
// the reasons of appraisal and admission evidence that does not hold.
func (o *Opening) Finish(b []byte, trust Trust, at time.Time) (*Session, error) {
	a, err := unverifiedAnswer(b)
	if err != nil {
		return nil, err
	}
	peer, err := o.peer(a, trust, at)
	if err != nil {
		return nil, err
	}
	alone := len(a.ticket) == 0
	if err := o.caughtUp(attest.Digest(a.head), alone, trust.Policy, peer); err != nil {
		return nil, err
	}
	t := o.transcript(a, trust, peer)
	id := wire.SessionID(a.session)
	if want := t.sessionID(id.Range()); id != want {
		return nil, wire.Refuse(wire.BadDigest, "session answer: session id", id, want)
	}
	digest, evidence, ticket := t.digest(id), wire.Sum(a.evidence), wire.Sum(a.ticket)
	if err := verify(peer.PublicKey(), a.signature, wire.LabelSessionSignature, digest[:], evidence[:], ticket[:], a.time); err != nil {
		return nil, err
	}
	unitTime, err := parseTime(a.time)
	if err != nil {
		return nil, err
	}
	if err := CheckSkew(unitTime, at); err != nil {
		return nil, err
	}
	shared, err := decapsulate(o.key, a.enc)
	if err != nil {
		return nil, err
	}
	s := &Session{id: id, peer: peer, alone: alone, holders: o.pin.holders(peer), head: t.head, expires: time.Unix(int64(t.expiry), 0), wants: o.wants, ticket: a.ticket, unitTime: unitTime}
	if s.secret, err = sessionSecret(shared, digest); err != nil {
		return nil, err
	}
	if o.wants&WantEvidence != 0 {
		data, err := evidenceData(s.secret[:], digest)
		if err == nil {
			s.evidence, err = trust.appraise(a.evidence, attest.Question{ReportData: data, Secret: o.hidden, At: at}, peer)
		}
		if err != nil {
			return nil, fmt.Errorf("judging fresh evidence: %w", err)
		}
	}
	return s, nil
}

// ErrBeforeCut says that a session is shared under ring keys that a unit which was cut
// off may hold: its unit has not heard of the cut.
var ErrBeforeCut = wire.Refuse(wire.Behind, "session answer: policy head", "one before a cut, of a session that is sealed for other units", "one since the cut, or a session without a ticket")

// caughtUp refuses, with "behind", what a unit that stands under a policy head opened
// while it did not know enough: less than was wanted, or, unless the session stays
// with that unit alone, a cut of units that hold the ring key.
func (o *Opening) caughtUp(head attest.Digest, alone bool, p policy.Approved, peer identity.Peer) error {
	if o.wants&WantHead != 0 {
		got, _ := p.Index(head) // signer saw to it that it is known
		if least, known := p.Index(attest.Digest(o.least)); !known || got < least {
			return wire.Refuse(wire.Behind, "session answer: policy head", head, "the one wanted, or a later one: "+attest.Digest(o.least).String())
		}
	}
	if !alone && identity.RingCutSince(p, o.pin.holders(peer), head) {
		return ErrBeforeCut
	}
	return nil
}

// peer is the unit that answered, as far as its certificates go.
func (o *Opening) peer(a answer, trust Trust, at time.Time) (identity.Peer, error) {
	return trust.signer(a.chain, o.pin, signer{head: a.head, unit: a.unit, identity: a.identity, expiry: a.expiry}, at)
}

// signer is what a unit says of itself beside its chain; nothing is checked yet.
type signer struct{ head, unit, identity, expiry []byte } // unit: nil where the message names none

// signer is the unit of a pin, as far as its certificates go, whose chain stands
// beside what it says.
func (t Trust) signer(chain []byte, pin Pin, said signer, at time.Time) (identity.Peer, error) {
	head := attest.Digest(said.head)
	if head.IsZero() {
		return identity.Peer{}, wire.Refuse(wire.Malformed, "unit: policy head", "none", "a head")
	}
	if !t.Policy.Knows(head) {
		return identity.Peer{}, wire.Refuse(wire.Behind, "unit: policy head", head, "one of the history that is known")
	}
	peer, err := t.unit(chain, pin, at)
	if err != nil {
		return identity.Peer{}, err
	}
	if id := peer.UnitID(); said.unit != nil && wire.UnitID(said.unit) != id {
		return identity.Peer{}, wire.Refuse(wire.WrongIdentity, "unit: id beside the chain", wire.UnitID(said.unit), id)
	}
	if attest.Digest(said.identity) != peer.ID() {
		return identity.Peer{}, wire.Refuse(wire.WrongIdentity, "unit: identity", "another", "that of the certificate of "+peer.UnitID().String())
	}
	expires, now := binary.BigEndian.Uint64(said.expiry), uint64(at.Unix())
	if expires <= now || expires > now+maxSession+clockMargin || expires > uint64(peer.NotAfter().Unix()) {
		return identity.Peer{}, wire.Refuse(wire.Expired, "unit: expiry", expires, fmt.Sprint("after ", now, ", within an hour and the unit's certificate"))
	}
	return peer, nil
}

// unit checks a unit's chain against a pin.
func (t Trust) unit(b []byte, pin Pin, at time.Time) (identity.Peer, error) {
	chain, err := parseChain(b)
	if err != nil {
		return identity.Peer{}, err
	}
	if at, err = checkedAt(chain[0], at); err != nil {
		return identity.Peer{}, err
	}
	expect, err := pin.expect(t.Policy, at)
	if err != nil {
		return identity.Peer{}, err
	}
	expect.Approvers = t.Approvers
	peer, err := identity.Check(chain, t.Root, expect)
	if err != nil {
		return identity.Peer{}, fmt.Errorf("checking the unit: %w", err)
	}
	return peer, nil
}

// checkedAt is the time at which a unit's certificate is checked: at, or its begin
// while the client's clock is behind the authority's by no more than clocks may
// differ. It refuses, with "clock", one that begins later.
func checkedAt(c *x509.Certificate, at time.Time) (time.Time, error) {
	if !at.Before(c.NotBefore) {
		return at, nil
	}
	if earliest := c.NotBefore.Add(wire.WindowLead - wire.MaxClockSkew); at.Before(earliest) {
		return time.Time{}, wire.Refuse(wire.ClockSkew, "unit: begin of the certificate against this machine's time", at.UTC().Format(time.RFC3339), "after "+earliest.UTC().Format(time.RFC3339))
	}
	return c.NotBefore, nil
}

// transcript puts together what was said. What the certificates say is taken
// from them, not from the answer beside them.
func (o *Opening) transcript(a answer, trust Trust, peer identity.Peer) *transcript {
	return &transcript{
		kemKey: o.kemKey(), nonce: o.nonce, pin: o.pin.bytes(), wants: o.wants, least: o.least, enc: a.enc,
		unit: peer.UnitID(), identity: peer.ID(), root: trust.Policy.Document().Authority.Root, chain: wire.Sum(a.chain),
		ring: identity.RingID(a.ring), head: attest.Digest(a.head), expiry: binary.BigEndian.Uint64(a.expiry),
	}
}

// appraise judges fresh evidence: it must be bound to this session's secret, and
// of code that policy admits as the identity in the certificate.
func (t Trust) appraise(raw []byte, q attest.Question, peer identity.Peer) (attest.Result, error) {
	if len(raw) == 0 || t.Verifier == nil {
		return attest.Result{}, wire.Refuse(wire.EvidenceMissing, "session answer: evidence", "none that can be judged", "fresh evidence")
	}
	if err := q.Evidence.UnmarshalJSON(raw); err != nil { // directly: it scans what it reads itself
		return attest.Result{}, err
	}
	q.Endorsements, q.Rules = t.Endorsements, t.Policy.Rules()
	result, err := t.Verifier.Appraise(q)
	if err != nil {
		return attest.Result{}, err
	}
	if peer.Group() != "" {
		grant, err := t.Policy.AdmitMember(peer.Group(), peer.Role(), result, policy.Pins{Parties: []attest.Digest{peer.Party()}}, policy.ApprovedRoot(q.At), q.At)
		if err == nil && grant.Pact.ID() != peer.ID() {
			err = wire.Refuse(wire.StaleRoster, "fresh evidence: group", peer.ID(), grant.Pact.ID())
		}
		return result, err
	}
	grant, err := t.Policy.Admit(peer.Task(), result)
	if err != nil {
		return attest.Result{}, err
	}
	if id, err := identity.ReleaseID(t.Policy, peer.Task(), grant.Release.Name); err != nil || id != peer.ID() {
		return attest.Result{}, wire.Refuse(wire.WrongIdentity, "fresh evidence: identity", id, peer.ID())
	}
	return result, nil
}
