package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

const (
	// MaxHead is the maximum size in bytes of a proved head: a framing of six fields, about 900 bytes.
	MaxHead   = wire.MaxHead
	maxSpread = wire.MaxLifetime // in a proved head: the maximum lifetime of a certificate
)

// HeadClaim is an authority's unverified statement about its policy history at one time; a
// [ProvedHead] is a verified statement.
type HeadClaim struct {
	Head   attest.Digest // head of the history
	Steps  uint64        // steps of the history, at least 1
	At     time.Time     // time on the authority's clock, in whole seconds
	Spread time.Duration // time over which units spread the renewals after a step, in whole milliseconds
}

// message returns the bytes that the authority signs.
func (c HeadClaim) message() []byte {
	return wire.Frame(wire.LabelHead, c.Head[:], wire.Uint64(c.Steps), wire.Uint64(uint64(c.At.Unix())), wire.Uint64(uint64(c.Spread.Milliseconds())))
}

// ProveHead signs a claim with [SignWithLeaf]. It rounds times down to their unit. It refuses, with
// "request", a claim that [ParseHead] would refuse even with a valid signature.
func ProveHead(c HeadClaim, signer Leaf) ([]byte, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	return SignWithLeaf(c.message(), signer)
}

// validate refuses, with "request", values that cannot be encoded.
func (c HeadClaim) validate() error {
	if c.Head.IsZero() || c.Steps < 1 || c.Steps > wire.MaxHistory || c.At.Unix() < 0 || c.At.After(lastTime) || c.Spread < 0 || c.Spread > maxSpread {
		return wire.Refuse(wire.BadRequest, "policy head: values", fmt.Sprintf("%v, %d steps, %d, %v", c.Head, c.Steps, c.At.Unix(), c.Spread),
			fmt.Sprintf("a head, 1 to %d steps, a time from 1970 to 2200, a spread of at most %v", wire.MaxHistory, maxSpread))
	}
	return nil
}

// ProvedHead is a policy head that the authority has signed. Only [ParseHead] makes one;
// the zero ProvedHead proves nothing. It is immutable.
type ProvedHead struct {
	claim   HeadClaim
	encoded []byte
}

// Verified reports whether h came from ParseHead.
func (h ProvedHead) Verified() bool { return len(h.encoded) > 0 }

// PolicyHead returns the head of the policy history.
func (h ProvedHead) PolicyHead() attest.Digest { return h.claim.Head }

// Steps returns the number of steps of the history.
func (h ProvedHead) Steps() int { return int(h.claim.Steps) }

// SignedAt returns the time of the signature on the authority's clock, rounded down to a second.
func (h ProvedHead) SignedAt() time.Time { return h.claim.At }

// Spread returns the time over which units spread the renewals after a step.
func (h ProvedHead) Spread() time.Duration { return h.claim.Spread }

// Bytes returns the encoding that [ParseHead] accepts. The caller must not change it.
func (h ProvedHead) Bytes() []byte { return h.encoded }

// Field returns the value for the HTTP header field [wire.FieldHead], empty for the zero
// ProvedHead.
func (h ProvedHead) Field() string { return base64.RawURLEncoding.EncodeToString(h.encoded) }

// DecodeHeadField decodes a value of the HTTP header field [wire.FieldHead]. It does not verify
// the head; [ParseHead] does. It refuses any other encoding with "malformed", and more than
// [MaxHead] bytes with "too-large".
func DecodeHeadField(value string) (unverified []byte, err error) {
	if base64.RawURLEncoding.DecodedLen(len(value)) > MaxHead {
		return nil, wire.Refuse(wire.TooLarge, "policy head: size of the field", len(value), base64.RawURLEncoding.EncodedLen(MaxHead))
	}
	unverified, err = base64.RawURLEncoding.Strict().DecodeString(value)
	if err != nil || len(unverified) == 0 {
		return nil, wire.Refuse(wire.Malformed, "policy head: field", value, "base64url without padding")
	}
	return unverified, nil
}

// ParseHead verifies a proved head against an approved policy history, at a time of the
// caller's clock. The signer must have a leaf of kind authority under the authority root that
// the policy names; authorityRoot is the certificate of that root.
//
// ParseHead refuses with "malformed" any other encoding, with "too-large" more than [MaxHead]
// bytes, and with the reasons of [LeafSigned.Check]. It refuses, with "behind", a head that differs
// from the head of the approved history after the same number of steps.
func ParseHead(b []byte, approved policy.Approved, authorityRoot *x509.Certificate, at time.Time) (ProvedHead, error) {
	unverified, signed, err := decodeHead(b)
	if err == nil {
		err = signed.Check(approved, authorityRoot, at)
	}
	if err != nil {
		return ProvedHead{}, err
	}
	heads := approved.Heads()
	if n := int(unverified.Steps); n <= len(heads) && heads[n-1] != unverified.Head {
		return ProvedHead{}, wire.Refuse(wire.Behind, fmt.Sprintf("policy head: after %d steps", n), unverified.Head, heads[n-1])
	}
	return ProvedHead{unverified, bytes.Clone(b)}, nil
}

// decodeHead parses the fields. It verifies only their encoding.
func decodeHead(b []byte) (unverified HeadClaim, signed LeafSigned, err error) {
	if len(b) > MaxHead {
		return unverified, signed, wire.Refuse(wire.TooLarge, "policy head: size in bytes", len(b), MaxHead)
	}
	var f [6][]byte // head, steps, time, spread, leaf, signature
	if err := wire.UnframeInto(f[:], wire.LabelHead, b); err != nil {
		return unverified, signed, err
	}
	sized := len(f[0]) == len(unverified.Head) && len(f[1]) == 8 && len(f[2]) == 8 && len(f[3]) == 8
	if sized {
		unverified = HeadClaim{
			Head: attest.Digest(f[0]), Steps: binary.BigEndian.Uint64(f[1]), At: time.Unix(int64(binary.BigEndian.Uint64(f[2])), 0).UTC(),
			Spread: time.Duration(min(binary.BigEndian.Uint64(f[3]), math.MaxInt32)) * time.Millisecond, // beyond maxSpread, and no overflow
		}
	}
	if !sized || unverified.validate() != nil {
		return unverified, signed, wire.Refuse(wire.Malformed, "policy head: sizes and values of its fields", fmt.Sprintf("%x, %x, %x, %x", f[0], f[1], f[2], f[3]), "those of docs/spec/head.md")
	}
	return unverified, LeafSigned{"policy head", unverified.message(), unverified.At, f[4], f[5]}, nil
}

// SignWithLeaf signs a framing with the key of a kind-authority leaf of an [Issuer], and returns
// it with two more fields: the leaf, DER, and the signature.
func SignWithLeaf(message []byte, signer Leaf) ([]byte, error) {
	digest := sha256.Sum256(message)
	signature, err := ecdsa.SignASN1(rand.Reader, signer.Key, digest[:])
	if err != nil {
		return nil, fmt.Errorf("signing with the authority's leaf: %w", err)
	}
	return wire.AppendField(wire.AppendField(message, signer.DER), signature), nil
}

// LeafSigned contains the parts of what [SignWithLeaf] made. None is verified before
// [LeafSigned.Check].
type LeafSigned struct {
	What            string    // for refusals, for example "policy head"
	Message         []byte    // the framing that was signed
	At              time.Time // when it was signed, as the message states
	Leaf, Signature []byte
}

// Check requires a leaf of kind authority under the authority root that an approved policy names,
// its signature over the message, and times that match the caller's time at: clocks may differ by
// 5 minutes. It refuses with "malformed" a leaf that is no certificate, with "clock", with the
// reasons of [Check], and with "signature".
func (s LeafSigned) Check(approved policy.Approved, authorityRoot *x509.Certificate, at time.Time) error {
	leaf, err := x509.ParseCertificate(s.Leaf)
	if err != nil {
		return wire.Refuse(wire.Malformed, s.What+": certificate", err, "X.509, DER")
	}
	verifyAt, err := s.leafTime(leaf, at)
	if err != nil {
		return err
	}
	_, err = Check([]*x509.Certificate{leaf}, authorityRoot, Expect{
		Policy: approved, Kinds: []Kind{KindAuthority}, Use: UseSigning, At: verifyAt,
	})
	if err != nil {
		return fmt.Errorf("checking the signer of the %s: %w", s.What, err)
	}
	if leaf.CheckSignature(x509.ECDSAWithSHA256, s.Message, s.Signature) != nil {
		return wire.Refuse(wire.BadSignature, s.What+": signature", "a signature that does not verify under "+leaf.Subject.String(), "the authority's signature")
	}
	return nil
}

// leafTime returns the time at which the leaf is verified: the caller's, or the nearer end of the
// leaf's validity. It refuses times that differ by more than clocks may differ.
func (s LeafSigned) leafTime(leaf *x509.Certificate, at time.Time) (time.Time, error) {
	verifyAt := at
	switch {
	case at.Before(leaf.NotBefore):
		verifyAt = leaf.NotBefore
	case at.After(leaf.NotAfter):
		verifyAt = leaf.NotAfter
	}
	if verifyAt.Sub(at).Abs() > wire.MaxClockSkew || s.At.Sub(at) > wire.MaxClockSkew || s.At.Before(leaf.NotBefore) || s.At.After(leaf.NotAfter) {
		return time.Time{}, wire.Refuse(wire.ClockSkew, s.What+": time, and window of its signer",
			fmt.Sprintf("%s, %s to %s", s.At.Format(time.RFC3339), leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339)),
			"within 5 minutes of "+at.UTC().Format(time.RFC3339))
	}
	return verifyAt, nil
}
