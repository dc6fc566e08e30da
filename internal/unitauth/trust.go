package unitauth

import (
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Trust contains the values under which a client verifies units: policy, root, and the verifier
// of evidence.
type Trust struct {
	Policy policy.Approved
	Root   *x509.Certificate // the authority root that Policy names
	// Approvers are the key digests of the party that must approve a group, as in
	// [identity.Expect]. Without them the owners choose the group's parties.
	Approvers []attest.Digest
	// Verifier appraises fresh evidence. If nil, fresh evidence is refused.
	Verifier *attest.Verifier
	// Endorsements are used with fresh evidence if its platform needs them.
	Endorsements attest.Endorsements
}

// Limits of the statements that a unit signs.
const (
	MaxChain    = 16 << 10 // bytes of a certificate chain
	MaxSession  = 3600     // seconds from opening to expiry of a session
	ClockMargin = 300      // seconds by which the clocks of two honest machines may differ
)

// SignerClaims are the unverified claims in a unit's message. Unit is nil if the message names
// no unit.
type SignerClaims struct{ Head, Unit, Identity, Expiry []byte }

// Signer verifies the chain of a unit against a pin, and the claims in the unit's message
// against trust and chain. It returns the unit.
func (t Trust) Signer(chain []byte, pin Pin, claims SignerClaims, at time.Time) (identity.Peer, error) {
	head := attest.Digest(claims.Head)
	if head.IsZero() {
		return identity.Peer{}, wire.Refuse(wire.Malformed, "unit: policy head", head, "a head that is not zero")
	}
	if !t.Policy.Knows(head) {
		return identity.Peer{}, wire.Refuse(wire.Behind, "unit: policy head", head, "a head of the known history")
	}
	peer, err := t.verifyUnit(chain, pin, at)
	if err != nil {
		return identity.Peer{}, err
	}
	if id := peer.UnitID(); claims.Unit != nil && wire.UnitID(claims.Unit) != id {
		return identity.Peer{}, wire.Refuse(wire.WrongIdentity, "unit: id beside the chain", wire.UnitID(claims.Unit), id)
	}
	if attest.Digest(claims.Identity) != peer.ID() {
		return identity.Peer{}, wire.Refuse(wire.WrongIdentity, "unit: identity", attest.Digest(claims.Identity), fmt.Sprint(peer.ID(), ", of the certificate of ", peer.UnitID()))
	}
	expires, now := binary.BigEndian.Uint64(claims.Expiry), uint64(at.Unix())
	if expires <= now || expires > now+MaxSession+ClockMargin || expires > uint64(peer.NotAfter().Unix()) {
		return identity.Peer{}, wire.Refuse(wire.Expired, "unit: expiry", expires, fmt.Sprint("after ", now, ", within an hour and the unit's certificate"))
	}
	return peer, nil
}

// verifyUnit verifies a unit's chain against a pin.
func (t Trust) verifyUnit(b []byte, pin Pin, at time.Time) (identity.Peer, error) {
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

// checkedAt returns the time at which a unit's certificate is checked. That is at or, if the
// certificate begins later, its begin: the client's clock may be behind the authority's. It
// refuses, with "clock", a certificate that begins later than the allowed difference of clocks
// explains.
func checkedAt(c *x509.Certificate, at time.Time) (time.Time, error) {
	if !at.Before(c.NotBefore) {
		return at, nil
	}
	if earliest := c.NotBefore.Add(wire.WindowLead - wire.MaxClockSkew); at.Before(earliest) {
		return time.Time{}, wire.Refuse(wire.ClockSkew, "unit: begin of the certificate against this machine's time", at.UTC().Format(time.RFC3339), "after "+earliest.UTC().Format(time.RFC3339))
	}
	return c.NotBefore, nil
}

// parseChain parses Frame("cohort chain v1", unit certificate, cross-certificate).
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

// Appraise appraises fresh evidence. The evidence must be bound to this session's secret, and
// prove code that the policy admits as the identity in the unit's certificate.
func (t Trust) Appraise(raw []byte, q attest.Question, peer identity.Peer) (attest.Result, error) {
	if len(raw) == 0 || t.Verifier == nil {
		return attest.Result{}, wire.Refuse(wire.EvidenceMissing, "session response: evidence", fmt.Sprintf("%d bytes, with a verifier: %t", len(raw), t.Verifier != nil), "fresh evidence, and a verifier for it")
	}
	if err := q.Evidence.UnmarshalJSON(raw); err != nil { // called directly, because it scans its input itself
		return attest.Result{}, err
	}
	q.Endorsements, q.Rules = t.Endorsements, t.Policy.Rules()
	result, err := t.Verifier.Appraise(q)
	if err != nil {
		return attest.Result{}, err
	}
	if peer.Group() != "" {
		grant, err := t.Policy.AdmitMember(peer.Group(), peer.RoleName(), result, policy.Pins{Parties: []attest.Digest{peer.Party()}}, policy.ApprovedRoot(q.At), q.At)
		if err == nil && grant.GroupState.ID() != peer.ID() {
			err = wire.Refuse(wire.StaleRoster, "fresh evidence: group", peer.ID(), grant.GroupState.ID())
		}
		return result, err
	}
	grant, err := t.Policy.Admit(peer.TaskName(), result)
	if err != nil {
		return attest.Result{}, err
	}
	if id, err := identity.ReleaseID(t.Policy, peer.TaskName(), grant.Release.Name); err != nil || id != peer.ID() {
		return attest.Result{}, wire.Refuse(wire.WrongIdentity, "fresh evidence: identity", id, peer.ID())
	}
	return result, nil
}
