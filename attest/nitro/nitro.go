// Package nitro appraises attestation documents of AWS Nitro enclaves, and asks
// the security module of the enclave it runs in for one.
//
// [Appraiser] trusts the root keys whose digests the rules name (AWS has one,
// Root-G1) and nothing else. Evidence is the document as the module gives it:
// an untagged COSE_Sign1 (RFC 9052) over a CBOR map, which carries its own
// certificates. There are no endorsements: AWS publishes no revocation list for
// these certificates, which live three hours.
//
// It refuses a document that is not in the one encoding, whose bundle does not
// begin with an accepted root, whose chain does not hold or is out of its time,
// whose signature does not verify, and one that is older than the rules accept.
// A debug enclave, whose PCRs are zero and whose console its host can read, is
// said to be one. docs/spec/evidence-nitro.md has every field and check.
package nitro

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/veraison/go-cose"
)

// Appraiser judges Nitro attestation documents. It holds nothing.
type Appraiser struct{}

// Platform is [attest.Nitro].
func (Appraiser) Platform() attest.Platform { return attest.Nitro }

// Appraise judges a document. Its report data is the document's user_data.
func (Appraiser) Appraise(raw []byte, _ attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	d, err := parse(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	leaf, err := d.chain(rules.Roots, at)
	if err != nil {
		return attest.Claims{}, err
	}
	if err := d.signedBy(leaf); err != nil {
		return attest.Claims{}, err
	}
	if err := d.fresh(rules.Nitro.MaxAge, at); err != nil {
		return attest.Claims{}, err
	}
	return d.claims(), nil
}

// UnverifiedClaims are what a document says of itself.
func (Appraiser) UnverifiedClaims(raw []byte) (attest.Claims, error) {
	d, err := parse(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	return d.claims(), nil
}

// chain checks the document's certificates against the accepted roots and gives
// the one that signed it.
func (d document) chain(roots []attest.Digest, at time.Time) (*x509.Certificate, error) {
	bundle, err := d.certificates()
	if err != nil {
		return nil, err
	}
	leaf, root, between := bundle[0], bundle[1], bundle[2:]
	if got := wire.Sum(root.RawSubjectPublicKeyInfo); !slices.Contains(roots, got) {
		return nil, wire.Refuse(wire.UnknownRoot, "nitro: root of the bundle", got, "a root that policy names")
	}
	options := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	options.Roots.AddCert(root)
	for _, c := range between {
		options.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(options); err != nil {
		return nil, refuseChain(err, at)
	}
	return leaf, nil
}

// certificates parses the leaf and the bundle: leaf, root, intermediates.
func (d document) certificates() ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for i, der := range append([][]byte{d.Certificate}, d.CABundle...) {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, wire.Refuse(wire.Malformed, fmt.Sprintf("nitro: certificate %d", i), err, "DER")
		}
		if c.SignatureAlgorithm != x509.ECDSAWithSHA384 {
			return nil, wire.Refuse(wire.BadChain, fmt.Sprintf("nitro: signature algorithm of certificate %d", i), c.SignatureAlgorithm, x509.ECDSAWithSHA384)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// refuseChain tells a chain out of its time from one that does not hold.
func refuseChain(err error, at time.Time) error {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return wire.Refuse(wire.Expired, "nitro: time of the certificates", at.UTC().Format(time.RFC3339), err)
	}
	return wire.Refuse(wire.BadChain, "nitro: certificates", err, "a chain to the root")
}

// signedBy checks the COSE signature.
func (d document) signedBy(leaf *x509.Certificate) error {
	key, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P384() {
		return wire.Refuse(wire.BadChain, "nitro: key of the signing certificate", leaf.PublicKeyAlgorithm, "ECDSA P-384")
	}
	verifier, err := cose.NewVerifier(cose.AlgorithmES384, key)
	if err != nil {
		return wire.Refuse(wire.BadChain, "nitro: key of the signing certificate", err, "a key for ES384")
	}
	if err := d.message.Verify(nil, verifier); err != nil {
		return wire.Refuse(wire.BadSignature, "nitro: signature of the document", err, "one by "+leaf.Subject.CommonName)
	}
	return nil
}

// fresh checks the document's own time.
func (d document) fresh(maxAge time.Duration, at time.Time) error {
	age := at.Sub(d.made())
	if age < -wire.MaxClockSkew || age > maxAge {
		return wire.Refuse(wire.Expired, "nitro: age of the document", age, fmt.Sprintf("at most %v", maxAge))
	}
	return nil
}

// claims are what the document says, once it is believed.
func (d document) claims() attest.Claims {
	m := attest.Measurement{Platform: attest.Nitro}
	for _, i := range measured {
		m.Registers = append(m.Registers, attest.Register{Name: pcrName(i), Value: d.PCRs[i]})
	}
	details := map[string]any{
		"module_id":  d.ModuleID,
		"digest":     d.Digest,
		"timestamp":  d.made().Format(time.RFC3339),
		"user_data":  hex.EncodeToString(d.UserData),
		"nonce":      hex.EncodeToString(d.Nonce),
		"public_key": hex.EncodeToString(d.PublicKey),
	}
	for i, value := range d.PCRs {
		details[pcrName(i)] = hex.EncodeToString(value)
	}
	return attest.Claims{Measurement: m, ReportData: d.UserData, Debug: d.debug(), Chip: d.ModuleID, Details: details}
}
