package dcap

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/attest/internal/pki"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Names of Intel's certificates.
const (
	nameRoot       = "Intel SGX Root CA"
	namePlatformCA = "Intel SGX PCK Platform CA"
	nameCPUCA      = "Intel SGX PCK Processor CA"
	namePCK        = "Intel SGX PCK Certificate"
	nameSigning    = "Intel SGX TCB Signing"
)

var intel = pki.Vendor{Name: "dcap", Algorithm: x509.ECDSAWithSHA256, ListAlgorithms: []x509.SignatureAlgorithm{x509.ECDSAWithSHA256}}

// parseChain reads certificates in PEM, leaf first: one, two or three.
func parseChain(of string, text []byte) ([]*x509.Certificate, error) {
	certs, err := intel.Certificates(of, text, 3)
	if err == nil && len(certs) == 0 {
		err = wire.Refuse(wire.Malformed, "dcap: "+of, fmt.Sprintf("%d bytes without a certificate", len(text)), "certificates in PEM")
	}
	return certs, err
}

// verifyChain checks that certificates are those of the names, leaf first, and sign
// one another up to a root that signs itself, and returns the leaf's key. Each name is
// a choice.
func verifyChain(of string, certs []*x509.Certificate, names ...[]string) (*ecdsa.PublicKey, error) {
	if len(certs) != len(names) {
		return nil, wire.Refuse(wire.BadChain, "dcap: certificates in "+of, len(certs), len(names))
	}
	for i, cert := range certs {
		if got := cert.Subject.CommonName; !slices.Contains(names[i], got) {
			return nil, wire.Refuse(wire.BadChain, "dcap: name of a certificate in "+of, got, names[i][0])
		}
	}
	if certs[0].IsCA {
		return nil, wire.Refuse(wire.BadChain, "dcap: "+certs[0].Subject.CommonName, "a CA", "a certificate that is no CA")
	}
	return intel.VerifyChainOn(elliptic.P256(), certs...)
}
