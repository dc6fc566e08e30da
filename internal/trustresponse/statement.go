package trustresponse

import (
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Claim is an authority's unverified statement about evidence of itself, which others may
// pass on and keep (docs/spec/trust.md, section 7); a [Statement] is a verified one.
type Claim struct {
	Genesis    attest.Digest // of the policy history
	Root       attest.Digest // of the authority root's SubjectPublicKeyInfo
	Head       attest.Digest // head of the policy history
	Steps      uint64        // steps of the history, at least 1
	At         time.Time     // when the evidence was made, by the authority's clock, in whole seconds
	Nonce      []byte        // the client's, of [api.TrustNonce] bytes; nil in a statement for many clients
	Evidence   attest.Digest // SHA-256 of the evidence as sent, its roles "checked" included
	Checkpoint []byte        // of a transparency log: not interpreted, at most maxCheckpoint bytes
}

// lastTime is the last time that a statement can have, as of certificates.
var lastTime = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)

// maxCheckpoint leaves room for the other fields and for two signatures of 64 bytes.
const maxCheckpoint = 512

// ReportData returns the report data of the evidence. The labels differ, so that evidence for one
// client is never that of a statement for many, and the reverse.
func (c Claim) ReportData() attest.ReportData {
	if len(c.Nonce) == 0 {
		return attest.BindReportData(wire.LabelTimedTrust, c.Root[:], c.Head[:], wire.Uint64(uint64(c.At.Unix())))
	}
	return attest.BindReportData(wire.LabelTrust, c.Nonce, c.Root[:], c.Head[:])
}

// message returns the bytes that the authority signs.
func (c Claim) message() []byte {
	return wire.Frame(wire.LabelTrustStatement, c.Genesis[:], c.Root[:], c.Head[:], wire.Uint64(c.Steps), wire.Uint64(uint64(c.At.Unix())), c.Nonce, c.Evidence[:], c.Checkpoint)
}

// validate refuses, with "request", values that cannot be encoded.
func (c Claim) validate() error {
	digests := !c.Genesis.IsZero() && !c.Root.IsZero() && !c.Head.IsZero() && !c.Evidence.IsZero()
	sizes := (len(c.Nonce) == 0 || len(c.Nonce) == api.TrustNonce) && len(c.Checkpoint) <= maxCheckpoint
	if !digests || !sizes || c.Steps < 1 || c.Steps > wire.MaxHistory || c.At.Unix() < 0 || c.At.After(lastTime) {
		return wire.Refuse(wire.BadRequest, "trust statement: values", fmt.Sprintf("%v, %v, %v, %v, %d steps, %d, nonce of %d bytes, checkpoint of %d", c.Genesis, c.Root, c.Head, c.Evidence, c.Steps, c.At.Unix(), len(c.Nonce), len(c.Checkpoint)),
			"those of docs/spec/trust.md, section 7")
	}
	return nil
}

// SignStatement signs a claim with the key of a kind-authority leaf of an [identity.Issuer]. It rounds the time
// down to a second. It refuses, with "request", a claim that [ParseStatement] would refuse
// even with a valid signature.
func SignStatement(c Claim, signer identity.Leaf) ([]byte, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	return identity.SignWithLeaf(c.message(), signer)
}

// Statement is a claim that the authority has signed. Only [ParseStatement] makes one.
type Statement struct{ claim Claim }

// SignedAt returns the time of the signature on the authority's clock, in whole seconds.
func (s Statement) SignedAt() time.Time { return s.claim.At }

// ReportData returns the report data that the evidence must carry.
func (s Statement) ReportData() attest.ReportData { return s.claim.ReportData() }

// Expect is what a client requires of a trust statement. All fields are required, except
// that Nonce is nil where the client sent none.
type Expect struct {
	Policy   policy.Approved   // the newest policy
	Root     *x509.Certificate // of the authority
	Nonce    []byte            // that the client sent
	Evidence []byte            // as it came
	At       time.Time         // the client's time
}

// ParseStatement verifies a trust statement. It refuses with "malformed" any other encoding,
// with "too-large" more than [wire.MaxTrustStatement] bytes, with "clock" and the reasons of
// [identity.LeafSigned.Check], and with "expired" a statement that is older than
// [wire.TrustLifetime]. Then it compares what was signed with what is expected, and refuses
// with "genesis", "authority-root", "behind" for another head, "nonce", and "digest" for other
// evidence.
func ParseStatement(b []byte, e Expect) (Statement, error) {
	unverified, signed, err := decodeStatement(b)
	if err != nil {
		return Statement{}, err
	}
	if err := signed.Check(e.Policy, e.Root, e.At); err != nil {
		return Statement{}, err
	}
	if age := e.At.Sub(unverified.At); age > wire.TrustLifetime {
		return Statement{}, wire.Refuse(wire.Expired, "trust statement: time", unverified.At.Format(time.RFC3339), "not before "+e.At.Add(-wire.TrustLifetime).UTC().Format(time.RFC3339))
	}
	if err := unverified.compare(e); err != nil {
		return Statement{}, err
	}
	return Statement{unverified}, nil
}

// compare refuses a claim that is not the expected one.
func (c Claim) compare(e Expect) error {
	if got, want := c.Genesis, e.Policy.Genesis(); got != want {
		return wire.Refuse(wire.WrongGenesis, "trust statement: genesis", got, want)
	}
	if got, want := c.Root, e.Policy.Document().Authority.Root; got != want {
		return wire.Refuse(wire.WrongRoot, "trust statement: authority root", got, want)
	}
	if steps := uint64(len(e.Policy.Heads())); c.Head != e.Policy.PolicyHead() || c.Steps != steps {
		return wire.Refuse(wire.Behind, "trust statement: policy head", fmt.Sprintf("%v after %d steps", c.Head, c.Steps), fmt.Sprintf("%v after %d steps", e.Policy.PolicyHead(), steps))
	}
	if string(c.Nonce) != string(e.Nonce) {
		return wire.Refuse(wire.BadNonce, "trust statement: nonce", fmt.Sprintf("%x", c.Nonce), fmt.Sprintf("%x", e.Nonce))
	}
	if got, want := wire.Sum(e.Evidence), c.Evidence; got != want {
		return wire.Refuse(wire.BadDigest, "trust statement: evidence", got, want)
	}
	return nil
}

// decodeStatement parses the fields. It verifies only their encoding.
func decodeStatement(b []byte) (unverified Claim, signed identity.LeafSigned, err error) {
	if len(b) > wire.MaxTrustStatement {
		return unverified, signed, wire.Refuse(wire.TooLarge, "trust statement: size in bytes", len(b), wire.MaxTrustStatement)
	}
	var f [10][]byte // genesis, root, head, steps, time, nonce, evidence, checkpoint, leaf, signature
	if err := wire.UnframeInto(f[:], wire.LabelTrustStatement, b); err != nil {
		return unverified, signed, err
	}
	malformed := func() error {
		return wire.Refuse(wire.Malformed, "trust statement: sizes and values of its fields", fmt.Sprintf("%x", f[:8]), "those of docs/spec/trust.md, section 7")
	}
	for i, size := range []int{32, 32, 32, 8, 8, len(f[5]), 32} {
		if len(f[i]) != size {
			return unverified, signed, malformed()
		}
	}
	seconds := binary.BigEndian.Uint64(f[4])
	if seconds > uint64(lastTime.Unix()) {
		return unverified, signed, malformed()
	}
	unverified = Claim{
		Genesis: attest.Digest(f[0]), Root: attest.Digest(f[1]), Head: attest.Digest(f[2]), Steps: binary.BigEndian.Uint64(f[3]),
		At: time.Unix(int64(seconds), 0).UTC(), Nonce: f[5], Evidence: attest.Digest(f[6]), Checkpoint: f[7],
	}
	if unverified.validate() != nil {
		return unverified, signed, malformed()
	}
	return unverified, identity.LeafSigned{What: "trust statement", Message: unverified.message(), At: unverified.At, Leaf: f[8], Signature: f[9]}, nil
}
