package identity

import (
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxAttribute is the upper bound of RFC 5280, appendix A.1, for common and
// organisation names, in bytes.
const maxAttribute = 64

// serialSize leaves room for the zero byte that DER puts before a number whose
// first bit is set: RFC 5280 allows 20 bytes.
const serialSize = 19

// tlsUsage is the extended key usage of leaves that serve and dial TLS.
var tlsUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}

// signer is a CA: a key and the name it signs under.
type signer struct {
	key  *ecdsa.PrivateKey
	name pkix.Name
}

// content is what differs between the certificates of the profile. The kind in
// the extension says whether it is a CA or a leaf.
type content struct {
	name      pkix.Name
	key       *ecdsa.PublicKey
	notBefore time.Time
	notAfter  time.Time
	extension extension

	// Leaves only.
	private *ecdsa.PrivateKey // of key, where it is derived
	names   []string          // DNS names
	domain  string            // of the SPIFFE URI
	path    string            // of the SPIFFE URI
	usage   []x509.ExtKeyUsage
}

// subject is a name that people can tell from others: what it is, the first 4
// bytes of the digest that names it, and the trust domain. OpenSSL takes a CA
// without a common name, or with that of its leaf, for self-signed.
func subject(what string, id attest.Digest, domain string) pkix.Name {
	common := fmt.Sprintf("%.*s %s", maxAttribute-9, what, id.Hex()[:8])
	return pkix.Name{CommonName: common, Organization: []string{fmt.Sprintf("%.*s", maxAttribute, domain)}}
}

// sign makes the certificate, DER. It is deterministic: signatures follow RFC
// 6979, and the serial number is a digest of everything else.
func (s signer) sign(c content) ([]byte, error) {
	template, err := c.template()
	if err != nil {
		return nil, fmt.Errorf("issuing %s certificate: %w", c.extension.kind, err)
	}
	spki := publicKeyInfo(&s.key.PublicKey)
	parent := &x509.Certificate{Subject: s.name, SubjectKeyId: keyID(spki)}
	template.SerialNumber = big.NewInt(1)
	draft, err := s.create(template, parent, c.key)
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial(spki, draft.RawTBSCertificate)
	signed, err := s.create(template, parent, c.key)
	if err != nil {
		return nil, err
	}
	return signed.Raw, nil
}

// create signs a template. Without a source of randomness ECDSA signatures are
// those of RFC 6979.
func (s signer) create(template, parent *x509.Certificate, key *ecdsa.PublicKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(nil, template, parent, key, s.key)
	if err != nil {
		return nil, fmt.Errorf("signing certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// serial is the serial number of a certificate: the first 19 bytes of the
// digest of the issuer's key and of the certificate's signed part with serial
// number 1. So no two different certificates of an issuer have one number.
func serial(issuer, unnumbered []byte) *big.Int {
	d := wire.Hash(wire.LabelSerial, issuer, unnumbered)
	return new(big.Int).SetBytes(d[:serialSize])
}

// keyID is the key identifier of a SubjectPublicKeyInfo: the first 20 bytes of
// its SHA-256, in the manner of RFC 7093, section 2.
func keyID(spki []byte) []byte {
	d := wire.Sum(spki)
	return d[:20]
}

// template is the content in the words of crypto/x509.
func (c content) template() (*x509.Certificate, error) {
	value, err := c.extension.encode()
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SignatureAlgorithm:    x509.ECDSAWithSHA256,
		Subject:               c.name,
		SubjectKeyId:          keyID(publicKeyInfo(c.key)),
		NotBefore:             c.notBefore,
		NotAfter:              c.notAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           c.usage,
		DNSNames:              c.names,
		ExtraExtensions:       []pkix.Extension{{Id: extensionOID, Value: value}},
	}
	if depth, isCA := pathLen[c.extension.kind]; isCA {
		t.IsCA, t.KeyUsage = true, x509.KeyUsageCertSign
		t.MaxPathLen, t.MaxPathLenZero = depth, depth == 0
		return t, nil
	}
	t.URIs = []*url.URL{spiffe(c.domain, c.path)}
	return t, nil
}

// pathLen is how many CAs may stand between a CA of a kind and a leaf. A kind
// without a row is a leaf's.
var pathLen = map[Kind]int{kindAuthorityRoot: 1, kindIdentityRoot: 0, kindCross: 0}

// spiffe is the URI of a path in a trust domain.
func spiffe(domain, path string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: domain, Path: path}
}
