// Package nitro appraises attestation documents of AWS Nitro enclaves, and asks
// the security module of the enclave it runs in for one.
//
// The appraiser trusts the root keys whose digests the rules name (AWS has one,
// Root-G1) and nothing else. Evidence is the document as the module gives it:
// an untagged COSE_Sign1 (RFC 9052) over a CBOR map, which carries its own
// certificates. The endorsements, by role, are AWS's revocation lists, DER:
//
//	root_crl    by the root, over its authorities of regions
//	region_crl  by the region's, over those of zones
//	zone_crl    by the zone's, over instances, where AWS names one
//
// It refuses a document that is not in the one encoding, whose bundle does not
// begin with an accepted root, whose chain does not verify, is revoked or out of its
// time, whose signature does not verify, one that is older than the rules accept,
// an outdated list, and where the rules state so a missing one.
// A debug enclave, whose PCRs are zero and whose console its host can read, is
// marked in the claims. docs/spec/evidence-nitro.md has every field and check.
//
// Files, each using those before it: document.go, eif.go, module.go, attester.go, nitro.go,
// platform.go, revocation.go.
package nitro

import (
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/internal/pki"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/veraison/go-cose"
)

// aws signs documents' certificates by one algorithm. No list of AWS's was seen by which
// to recognise those of lists, so each that fits the keys counts.
var aws = pki.Vendor{
	Name: "nitro", Algorithm: x509.ECDSAWithSHA384,
	ListAlgorithms: []x509.SignatureAlgorithm{x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512},
}

// documentAppraiser appraises Nitro attestation documents. It has no state.
type documentAppraiser struct{}

// Platform is [attest.Nitro].
func (documentAppraiser) Platform() attest.Platform { return attest.Nitro }

// Genuine implements [attest.Appraiser].
func (a documentAppraiser) Genuine() closed.Appraiser { return closed.VouchFor(a) }

// Appraise appraises a document. Its report data is the document's user_data.
func (documentAppraiser) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	d, chain, err := genuine(raw, rules, at)
	if err != nil {
		return attest.Claims{}, err
	}
	issued, err := revocations(chain, endorsed, rules.CRL, at)
	if err != nil {
		return attest.Claims{}, err
	}
	if err := d.checkAge(rules.Nitro.MaxAge, at); err != nil {
		return attest.Claims{}, err
	}
	claims := d.claims()
	claims.Issued = issued
	return claims, nil
}

// Screen does every check of Appraise that needs no list of AWS's. It is for the
// time before they are fetched: that it refuses nothing means nothing for revocation.
func (documentAppraiser) Screen(raw []byte, _ attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	d, _, err := genuine(raw, rules, at)
	if err != nil {
		return attest.Claims{}, err
	}
	return d.claims(), d.checkAge(rules.Nitro.MaxAge, at)
}

// genuine reads a document that AWS's certificates vouch for, and returns their
// chain, leaf first. Rules are asked for roots only.
func genuine(raw []byte, rules attest.Rules, at time.Time) (document, []*x509.Certificate, error) {
	d, err := parse(raw)
	if err != nil {
		return document{}, nil, err
	}
	chain, err := d.chain(rules.Roots, at)
	if err != nil {
		return document{}, nil, err
	}
	return d, chain, d.signedBy(chain[0])
}

// UnverifiedClaims are what a document states about itself.
func (documentAppraiser) UnverifiedClaims(raw []byte) (attest.Claims, error) {
	d, err := parse(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	return d.claims(), nil
}

// chain checks the document's certificates against the accepted roots and returns
// them from the one that signed it up to the root.
func (d document) chain(roots []attest.Digest, at time.Time) ([]*x509.Certificate, error) {
	bundle, err := d.certificates()
	if err != nil {
		return nil, err
	}
	leaf, root, between := bundle[0], bundle[1], bundle[2:]
	if got := wire.Sum(root.RawSubjectPublicKeyInfo); !slices.Contains(roots, got) {
		return nil, wire.Refuse(wire.UnknownRoot, "nitro: root of the bundle", got, "a root that policy names")
	}
	return aws.FindPath(leaf, []*x509.Certificate{root}, between, at)
}

// certificates parses the leaf and the bundle: leaf, root, intermediates.
func (d document) certificates() ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for i, der := range append([][]byte{d.Certificate}, d.CABundle...) {
		c, err := pki.ParseCertificate(der)
		if err != nil {
			return nil, wire.Refuse(wire.Malformed, fmt.Sprintf("nitro: certificate %d", i), err, "DER")
		}
		if c.SignatureAlgorithm != aws.Algorithm {
			return nil, wire.Refuse(wire.BadChain, fmt.Sprintf("nitro: signature algorithm of certificate %d", i), c.SignatureAlgorithm, aws.Algorithm)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// signedBy checks the COSE signature.
func (d document) signedBy(leaf *x509.Certificate) error {
	key, err := aws.PublicKey(leaf, elliptic.P384())
	if err != nil {
		return err
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

// checkAge checks the document's own time.
func (d document) checkAge(maxAge time.Duration, at time.Time) error {
	age := at.Sub(d.madeAt())
	if age < -wire.MaxClockSkew || age > maxAge {
		return wire.Refuse(wire.Expired, "nitro: age of the document", age, fmt.Sprintf("at most %v", maxAge))
	}
	return nil
}

// claims are what the document states, once it is verified.
func (d document) claims() attest.Claims {
	m := attest.Measurement{Platform: attest.Nitro}
	for _, i := range measured {
		m.Registers = append(m.Registers, attest.Register{Name: pcrName(i), Value: d.PCRs[i]})
	}
	details := map[string]any{
		"module_id":  d.ModuleID,
		"digest":     d.Digest,
		"timestamp":  d.madeAt().Format(time.RFC3339),
		"user_data":  hex.EncodeToString(d.UserData),
		"nonce":      hex.EncodeToString(d.Nonce),
		"public_key": hex.EncodeToString(d.PublicKey),
	}
	for i, value := range d.PCRs {
		details[pcrName(i)] = hex.EncodeToString(value)
	}
	return attest.Claims{Measurement: m, ReportData: d.UserData, Debug: d.debug(), Chip: d.ModuleID, Details: details}
}
