package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// RevocationList is a revocation list that its issuer signed.
type RevocationList struct {
	Validity Validity
	vendor   Vendor
	entries  []x509.RevocationListEntry
}

// ParseRevocationList reads a revocation list in DER and verifies that the issuer made and signed
// it. Bytes that the signature does not cover are refused. A critical extension must be known: it
// may state that the list is not of all certificates; a nil function knows none. It refuses with
// reason "malformed" or "signature".
func (v Vendor) ParseRevocationList(der []byte, issuer *x509.Certificate, known func(pkix.Extension) bool) (RevocationList, error) {
	of := "the revocation list of " + issuer.Subject.CommonName
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return RevocationList{}, wire.Refuse(wire.Malformed, v.Name+": "+of, err, "DER")
	}
	// Package x509 ignores what follows the list, and what follows the signature inside.
	if !endsWithSignature(der) {
		return RevocationList{}, wire.Refuse(wire.Malformed, v.Name+": end of "+of, "more bytes", "the signature, and nothing after it")
	}
	// CheckSignatureFrom compares no names: one key may sign under several.
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
		return RevocationList{}, wire.Refuse(wire.BadSignature, v.Name+": issuer of "+of, list.Issuer, issuer.Subject)
	}
	if !slices.Contains(v.ListAlgorithms, list.SignatureAlgorithm) {
		return RevocationList{}, wire.Refuse(wire.BadSignature, v.Name+": signature algorithm of "+of, list.SignatureAlgorithm, v.ListAlgorithms)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return RevocationList{}, wire.Refuse(wire.BadSignature, v.Name+": signature of "+of, err, "one by its issuer")
	}
	for _, e := range list.Extensions {
		if e.Critical && (known == nil || !known(e)) {
			return RevocationList{}, wire.Refuse(wire.Malformed, v.Name+": critical extension of "+of, e.Id, "none that is unknown")
		}
	}
	return RevocationList{Validity{of, list.ThisUpdate, list.NextUpdate, true}, v, list.RevokedCertificateEntries}, nil
}

// CheckNotRevoked refuses, with reason "revoked", a certificate of the issuer's that is on the
// list.
func (l RevocationList) CheckNotRevoked(certs ...*x509.Certificate) error {
	for _, entry := range l.entries {
		for _, cert := range certs {
			if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 {
				return wire.Refuse(wire.Revoked, l.vendor.Name+": serial of "+cert.Subject.CommonName,
					"revoked "+entry.RevocationTime.Format(time.RFC3339), "not revoked")
			}
		}
	}
	return nil
}
