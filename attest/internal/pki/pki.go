// Package pki is what the platforms below package attest share where vendors vouch by
// X.509 certificates (RFC 5280): links between certificates, paths, revocation lists,
// validity, and a bounded memory of what was verified.
//
// It trusts no certificate: which root keys count, and which names a chain must have,
// the caller checks. It refuses certificates and lists that are signed by another
// algorithm than the vendor's, that another issuer signed, that have a critical
// extension which nothing reads, that are out of their validity, certificates that are
// revoked, and issuers with RSA keys below 2,048 bits. Every platform has one [Vendor], whose name begins its refusals.
//
// Files, each using those before it: cache.go, pki.go, revocation.go, validity.go.
package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// minRSA is the least size of an issuer's RSA key, in bits (NIST SP 800-131A).
const minRSA = 2048

// Vendor is how one vendor signs.
type Vendor struct {
	Name string // of the platform, as refusals begin
	// Algorithm signs each certificate of a Chain. TPMs have many makers and no one
	// algorithm, so they have none here, and no Chain: a Path needs none.
	Algorithm x509.SignatureAlgorithm
	// ListAlgorithms are those that may sign a revocation list.
	ListAlgorithms []x509.SignatureAlgorithm
}

// Certificates reads at most so many certificates in PEM. It refuses other text with
// reason "malformed"; no certificate at all is no refusal.
func (v Vendor) Certificates(of string, text []byte, most int) ([]*x509.Certificate, error) {
	ders, err := wire.ParseCertificates(v.Name+": "+of, text, most)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for _, der := range ders {
		cert, err := ParseCertificate(der)
		if err != nil {
			return nil, wire.Refuse(wire.Malformed, v.Name+": certificate in "+of, err, "DER")
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// ParseCertificate is that of package x509, which ignores what follows the signature inside a
// certificate. Here it is an error.
func ParseCertificate(der []byte) (*x509.Certificate, error) {
	if !endsWithSignature(der) {
		return nil, errors.New("a structure without content, algorithm and signature, or with more")
	}
	return x509.ParseCertificate(der)
}

// endsWithSignature reports whether a certificate or revocation list in DER has the three parts that
// it must have (RFC 5280), and no byte that its signature does not cover.
func endsWithSignature(der []byte) bool {
	var parts []asn1.RawValue
	rest, err := asn1.Unmarshal(der, &parts)
	return err == nil && len(rest) == 0 && len(parts) == 3
}

// VerifyChain verifies that each certificate is signed by the next and the last one by
// itself. It refuses with reason "chain".
func (v Vendor) VerifyChain(certs ...*x509.Certificate) error {
	for i, cert := range certs {
		if err := v.verifyLink(cert, certs[min(i+1, len(certs)-1)]); err != nil {
			return err
		}
	}
	return nil
}

// verifyLink verifies one signature and what makes it count.
func (v Vendor) verifyLink(child, parent *x509.Certificate) error {
	name := child.Subject.CommonName
	if child.SignatureAlgorithm != v.Algorithm {
		return wire.Refuse(wire.BadChain, v.Name+": signature algorithm of "+name, child.SignatureAlgorithm, v.Algorithm)
	}
	if !bytes.Equal(child.RawIssuer, parent.RawSubject) {
		return wire.Refuse(wire.BadChain, v.Name+": issuer of "+name, child.Issuer, parent.Subject)
	}
	if err := v.checkStrength(parent); err != nil {
		return err
	}
	if len(child.UnhandledCriticalExtensions) > 0 {
		return wire.Refuse(wire.BadChain, v.Name+": critical extension of "+name, child.UnhandledCriticalExtensions[0], "none that is unknown")
	}
	if err := child.CheckSignatureFrom(parent); err != nil {
		return wire.Refuse(wire.BadChain, v.Name+": signature of "+name, err, "one by "+parent.Subject.CommonName)
	}
	return nil
}

// checkStrength refuses an issuer with a short RSA key, which package x509 accepts from 1,024 bits on.
func (v Vendor) checkStrength(issuer *x509.Certificate) error {
	if key, ok := issuer.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() < minRSA {
		return wire.Refuse(wire.BadChain, v.Name+": bits of the RSA key of "+issuer.Subject.CommonName, key.N.BitLen(), minRSA)
	}
	return nil
}

// VerifyChainOn is Chain where all keys must be on a curve, and returns the leaf's.
func (v Vendor) VerifyChainOn(curve elliptic.Curve, certs ...*x509.Certificate) (*ecdsa.PublicKey, error) {
	for _, cert := range certs {
		if _, err := v.PublicKey(cert, curve); err != nil {
			return nil, err
		}
	}
	if err := v.VerifyChain(certs...); err != nil {
		return nil, err
	}
	return v.PublicKey(certs[0], curve)
}

// PublicKey returns the key of a certificate, which must be on a curve. It refuses with
// reason "chain".
func (v Vendor) PublicKey(cert *x509.Certificate, curve elliptic.Curve) (*ecdsa.PublicKey, error) {
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	if !ok || key.Curve != curve {
		return nil, wire.Refuse(wire.BadChain, v.Name+": key of "+cert.Subject.CommonName, cert.PublicKeyAlgorithm, "ECDSA "+curve.Params().Name)
	}
	return key, nil
}

// FindPath finds a path from a leaf to one of the roots through certificates between them
// (RFC 5280, section 6), all valid at a time, and returns it leaf first. It is for
// vendors whose chains differ in length. It refuses with "expired" or "chain".
func (v Vendor) FindPath(leaf *x509.Certificate, roots, between []*x509.Certificate, at time.Time) ([]*x509.Certificate, error) {
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	for _, c := range roots {
		options.Roots.AddCert(c)
	}
	for _, c := range between {
		options.Intermediates.AddCert(c)
	}
	paths, err := leaf.Verify(options)
	if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return nil, wire.Refuse(wire.Expired, v.Name+": validity of the certificates", at.UTC().Format(time.RFC3339), err)
	}
	if err != nil {
		return nil, wire.Refuse(wire.BadChain, v.Name+": path of certificates", err, "one to a root that policy names")
	}
	for _, issuer := range paths[0][1:] {
		if err := v.checkStrength(issuer); err != nil {
			return nil, err
		}
	}
	return paths[0], nil
}
