package dcap

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Names that Intel gives its certificates.
const (
	nameRoot       = "Intel SGX Root CA"
	namePlatformCA = "Intel SGX PCK Platform CA"
	nameCPUCA      = "Intel SGX PCK Processor CA"
	namePCK        = "Intel SGX PCK Certificate"
	nameSigning    = "Intel SGX TCB Signing"
)

// span is the time of one certificate, list or document, both ends included.
type span struct {
	of          string
	from, until time.Time
}

// parseChain reads certificates in PEM, leaf first, in its one encoding.
func parseChain(of string, text []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	var again []byte
	for rest := text; len(certs) < 3; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, wire.Refuse(wire.Malformed, "dcap: certificate in "+of, err, "DER")
		}
		certs = append(certs, cert)
		again = append(again, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})...)
	}
	if len(certs) == 0 || !bytes.Equal(again, text) {
		return nil, wire.Refuse(wire.Malformed, "dcap: "+of, "another encoding", "certificates in PEM and nothing else")
	}
	return certs, nil
}

// hold checks that certificates are those of the names, leaf first, and sign
// one another up to a root that signs itself. Each name is a choice.
func hold(of string, certs []*x509.Certificate, names ...[]string) error {
	if len(certs) != len(names) {
		return wire.Refuse(wire.BadChain, "dcap: certificates in "+of, len(certs), len(names))
	}
	for i, cert := range certs {
		if got := cert.Subject.CommonName; !slices.Contains(names[i], got) {
			return wire.Refuse(wire.BadChain, "dcap: name of a certificate in "+of, got, names[i][0])
		}
		if err := link(cert, certs[min(i+1, len(certs)-1)]); err != nil {
			return err
		}
	}
	if certs[0].IsCA {
		return wire.Refuse(wire.BadChain, "dcap: "+certs[0].Subject.CommonName, "a CA", "none")
	}
	return nil
}

// link checks one signature and what makes it count.
func link(child, parent *x509.Certificate) error {
	name := child.Subject.CommonName
	if child.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return wire.Refuse(wire.BadChain, "dcap: signature algorithm of "+name, child.SignatureAlgorithm, x509.ECDSAWithSHA256)
	}
	if !bytes.Equal(child.RawIssuer, parent.RawSubject) {
		return wire.Refuse(wire.BadChain, "dcap: issuer of "+name, child.Issuer, parent.Subject)
	}
	if len(child.UnhandledCriticalExtensions) > 0 {
		return wire.Refuse(wire.BadChain, "dcap: critical extension of "+name, child.UnhandledCriticalExtensions[0], "none that is unknown")
	}
	if key, ok := child.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		return wire.Refuse(wire.BadChain, "dcap: key of "+name, child.PublicKeyAlgorithm, "ECDSA P-256")
	}
	if err := child.CheckSignatureFrom(parent); err != nil {
		return wire.Refuse(wire.BadChain, "dcap: signature of "+name, err, "one by "+parent.Subject.CommonName)
	}
	return nil
}

// revocations checks a list by its issuer, looks certificates up in it, and
// gives its time.
func revocations(der []byte, issuer *x509.Certificate, certs ...*x509.Certificate) (span, error) {
	of := "the revocation list of " + issuer.Subject.CommonName
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return span{}, wire.Refuse(wire.Malformed, "dcap: "+of, err, "DER")
	}
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) || list.SignatureAlgorithm != x509.ECDSAWithSHA256 {
		return span{}, wire.Refuse(wire.BadSignature, "dcap: issuer of "+of, list.Issuer, issuer.Subject)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return span{}, wire.Refuse(wire.BadSignature, "dcap: signature of "+of, err, "one by its issuer")
	}
	for _, e := range list.Extensions {
		if e.Critical {
			return span{}, wire.Refuse(wire.Malformed, "dcap: critical extension of "+of, e.Id, "none")
		}
	}
	for _, entry := range list.RevokedCertificateEntries {
		for _, cert := range certs {
			if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 {
				return span{}, wire.Refuse(wire.Revoked, "dcap: serial of "+cert.Subject.CommonName,
					"revoked "+entry.RevocationTime.Format(time.RFC3339), "not revoked")
			}
		}
	}
	return span{of, list.ThisUpdate, list.NextUpdate}, nil
}

func spansOf(certs ...*x509.Certificate) []span {
	var spans []span
	for _, cert := range certs {
		spans = append(spans, span{cert.Subject.CommonName, cert.NotBefore, cert.NotAfter})
	}
	return spans
}
