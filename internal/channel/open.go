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
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Trust is what a client judges an answer by.
type Trust struct {
	Policy policy.Approved
	Root   *x509.Certificate // of the authority that Policy names
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
	nonce   []byte
	request []byte
	hidden  func(attest.Introduction) []byte // from the unit that was challenged; nil: none was
}

// NewOpening makes an open request with a KEM key of its own. It refuses, with
// "request", a pin that is not exactly one.
func NewOpening(pin Pin, wants Wants) (*Opening, error) {
	if err := pin.check(); err != nil {
		return nil, err
	}
	o := &Opening{pin: pin, wants: wants, nonce: make([]byte, nonceSize)}
	rand.Read(o.nonce) // never returns an error: it ends the program instead
	var err error
	wire.Secretly(func() { o.key, err = hpke.MLKEM768X25519().GenerateKey() })
	if err != nil {
		return nil, fmt.Errorf("making a KEM key: %w", err)
	}
	o.request = wire.Frame(wire.LabelSessionOpen, []byte{suite}, o.kemKey(), o.nonce, pin.bytes(), []byte{byte(wants)})
	return o, nil
}

func (o *Opening) kemKey() []byte { return o.key.PublicKey().Bytes() }

// Request is the body of the open request. The caller does not change it.
func (o *Opening) Request() []byte { return o.request }

// answer is an answer taken apart; nothing in it is checked yet.
type answer struct {
	enc, session, unit, identity, ring, head, expiry []byte
	chain, signature, evidence, ticket               []byte
}

// unverifiedAnswer takes an answer apart and demands the size of every field.
func unverifiedAnswer(b []byte) (answer, error) {
	if len(b) > maxAnswer {
		return answer{}, wire.Refuse(wire.TooLarge, "session answer: size in bytes", len(b), maxAnswer)
	}
	f := make([][]byte, 11)
	if err := wire.UnframeInto(f, wire.LabelSessionAnswer, b); err != nil {
		return answer{}, err
	}
	for i, size := range []int{encSize, 24, 16, 32, 16, 32, 8} {
		if len(f[i]) != size {
			return answer{}, wire.Refuse(wire.Malformed, fmt.Sprint("session answer: size of field ", i+1), len(f[i]), size)
		}
	}
	if len(f[7]) > maxChain || len(f[10]) > maxTicket {
		return answer{}, wire.Refuse(wire.TooLarge, "session answer: size of chain and ticket", len(f[7])+len(f[10]), maxChain+maxTicket)
	}
	return answer{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10]}, nil
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
// trust may; with the reasons of [identity.Check] a unit that is not what the
// pin says; with "signature" an answer that the unit did not give to this
// request; with "evidence-missing" wanted evidence that is not there, and with
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
	t := o.transcript(a, trust, peer)
	id := wire.SessionID(a.session)
	if want := t.sessionID(id.Range()); id != want {
		return nil, wire.Refuse(wire.BadDigest, "session answer: session id", id, want)
	}
	digest, evidence, ticket := t.digest(id), wire.Sum(a.evidence), wire.Sum(a.ticket)
	if err := verify(peer.PublicKey(), a.signature, wire.LabelSessionSignature, digest[:], evidence[:], ticket[:]); err != nil {
		return nil, err
	}
	shared, err := decapsulate(o.key, a.enc)
	if err != nil {
		return nil, err
	}
	s := &Session{id: id, peer: peer, head: t.head, expires: time.Unix(int64(t.expiry), 0), wants: o.wants, ticket: a.ticket}
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

// peer is the unit that answered, as far as its certificates go.
func (o *Opening) peer(a answer, trust Trust, at time.Time) (identity.Peer, error) {
	peer, err := trust.signer(a.chain, o.pin, signer{head: a.head, identity: a.identity, expiry: a.expiry}, at)
	if err != nil {
		return identity.Peer{}, err
	}
	if id := peer.UnitID(); wire.UnitID(a.unit) != id {
		return identity.Peer{}, wire.Refuse(wire.WrongIdentity, "session answer: unit", wire.UnitID(a.unit), id)
	}
	return peer, nil
}

// signer is what a unit says of itself beside its chain; nothing is checked yet.
type signer struct{ head, identity, expiry []byte }

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
	expect, err := pin.expect(t.Policy, at)
	if err != nil {
		return identity.Peer{}, err
	}
	chain, err := parseChain(b)
	if err != nil {
		return identity.Peer{}, err
	}
	peer, err := identity.Check(chain, t.Root, expect)
	if err != nil {
		return identity.Peer{}, fmt.Errorf("checking the unit: %w", err)
	}
	return peer, nil
}

// transcript puts together what was said. What the certificates say is taken
// from them, not from the answer beside them.
func (o *Opening) transcript(a answer, trust Trust, peer identity.Peer) *transcript {
	return &transcript{
		kemKey: o.kemKey(), nonce: o.nonce, pin: o.pin.bytes(), wants: o.wants, enc: a.enc,
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
		grant, err := t.Policy.AdmitMember(peer.Group(), peer.Role(), result, q.At)
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
