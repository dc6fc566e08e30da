package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"math/bits"
	"net/url"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/der"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxAttribute is the upper bound for common and organisation names in bytes (RFC 5280,
// appendix A.1).
const maxAttribute = 64

// serialSize is the size of serial numbers in bytes. RFC 5280 allows 20; one is left for the
// zero byte that DER puts before a number whose first bit is set.
const serialSize = 19

// tlsUsage is the extended key usage of leaves for TLS servers and clients.
var tlsUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}

// signer is a CA: a key, and the fields that the CA's certificates repeat.
type signer struct {
	key  *ecdsa.PrivateKey
	name []byte // subject name, DER
	spki []byte // SubjectPublicKeyInfo, DER
}

func newSigner(key *ecdsa.PrivateKey, name []byte) signer {
	return signer{key: key, name: name, spki: publicKeyInfo(&key.PublicKey)}
}

// certificateContent is the variable part of a certificate. The kind in the extension determines
// whether it is a CA or a leaf.
type certificateContent struct {
	name      []byte // DER
	spki      []byte // DER
	notBefore time.Time
	notAfter  time.Time
	extension extension

	// Leaves only.
	private *ecdsa.PrivateKey // private key of spki if it is derived
	names   []string          // DNS names
	domain  string            // trust domain in the SPIFFE URI
	path    string            // path of the SPIFFE URI
	tls     bool              // for TLS servers and clients
}

// subject returns a subject name that people can tell apart: a description, the first 4 bytes of
// the digest of the identity, and the trust domain. OpenSSL treats a CA without a common name,
// or with the common name of its leaf, as self-signed.
func subject(what string, id attest.Digest, domain string) []byte {
	common := fmt.Sprintf("%.*s %s", maxAttribute-9, what, id.Hex()[:8])
	name := pkix.Name{CommonName: common, Organization: []string{fmt.Sprintf("%.*s", maxAttribute, domain)}}
	return der.MustMarshal(name.ToRDNSequence())
}

// signCertificate makes and signs a certificate, DER. It is deterministic: signatures follow RFC
// 6979, and the serial number is a digest of all other fields.
//
// The bytes are those of x509.CreateCertificate. That function needs the serial number in
// advance, so that the signed part would be built and signed twice. It also verifies its own
// signature because a crypto.Signer may be faulty; here the signer is crypto/ecdsa, and a unit
// verifies its chain before it serves.
func (s signer) signCertificate(c certificateContent) (encoded []byte, number *big.Int, err error) {
	rest, err := c.signedPart(s)
	if err != nil {
		return nil, nil, fmt.Errorf("issuing %s certificate: %w", c.extension.kind, err)
	}
	number = serial(s.spki, der.Element(der.Sequence, version3, der.Integer(big.NewInt(1)), rest))
	signed := der.Element(der.Sequence, version3, der.Integer(number), rest)
	digest := wire.Sum(signed)
	signature, err := s.key.Sign(nil, digest[:], crypto.SHA256) // no randomness: RFC 6979
	if err != nil {
		return nil, nil, fmt.Errorf("signing certificate: %w", err)
	}
	return der.Element(der.Sequence, signed, ecdsaWithSHA256, der.Element(der.BitString, []byte{0}, signature)), number, nil
}

// serial returns the serial number of a certificate: the first 19 bytes of the digest over the
// issuer's key and the certificate's signed part with serial number 1. So different
// certificates of an issuer have different serial numbers.
func serial(issuer, unnumbered []byte) *big.Int {
	d := wire.Hash(wire.LabelSerial, issuer, unnumbered)
	return new(big.Int).SetBytes(d[:serialSize])
}

// keyID returns the key identifier of a SubjectPublicKeyInfo: the first 20 bytes of its SHA-256,
// similar to RFC 7093, section 2.
func keyID(spki []byte) []byte {
	d := wire.Sum(spki)
	return d[:20]
}

// signedPart returns the signed part of a certificate (RFC 5280, section 4.1) after the serial
// number.
func (c certificateContent) signedPart(by signer) ([]byte, error) {
	value, err := c.extension.encode()
	if err != nil {
		return nil, err
	}
	times := der.MustMarshal(struct{ NotBefore, NotAfter time.Time }{c.notBefore, c.notAfter})
	usage, constraints := digitalSignature, endOfChain
	if depth, isCA := pathLen[c.extension.kind]; isCA {
		usage, constraints = certSign, der.Element(der.Sequence, isTrue, der.Integer(big.NewInt(int64(depth))))
	}
	list := [][]byte{criticalExtension(idKeyUsage, usage)}
	if c.tls {
		list = append(list, plainExtension(idExtKeyUsage, tlsUsageDER))
	}
	list = append(list, criticalExtension(idBasicConstraints, constraints), plainExtension(idSubjectKey, der.Element(der.OctetString, keyID(c.spki))))
	if !bytes.Equal(by.name, c.name) {
		list = append(list, plainExtension(idAuthorityKey, der.Element(der.Sequence, der.Element(der.Context, keyID(by.spki)))))
	}
	if c.path != "" {
		list = append(list, plainExtension(idAltName, c.altNames()))
	}
	list = append(list, plainExtension(idExtension, value))
	extensions := der.Element(der.ContextConstructed|3, der.Element(der.Sequence, list...))
	return bytes.Join([][]byte{ecdsaWithSHA256, by.name, times, c.name, c.spki, extensions}, nil), nil
}

// altNames returns the value of the subject alternative names: DNS names and SPIFFE URI.
func (c certificateContent) altNames() []byte {
	var list [][]byte
	for _, name := range c.names {
		list = append(list, der.Element(der.Context|2, []byte(name)))
	}
	list = append(list, der.Element(der.Context|6, []byte(spiffe(c.domain, c.path).String())))
	return der.Element(der.Sequence, list...)
}

func criticalExtension(id, value []byte) []byte {
	return der.Element(der.Sequence, id, isTrue, der.Element(der.OctetString, value))
}

func plainExtension(id, value []byte) []byte {
	return der.Element(der.Sequence, id, der.Element(der.OctetString, value))
}

// Constant parts of certificates, DER.
var (
	version3         = der.Element(der.ContextConstructed, der.Integer(big.NewInt(2)))
	isTrue           = der.Element(der.Boolean, []byte{0xff})
	digitalSignature = der.Element(der.BitString, []byte{7, 1 << 7})
	certSign         = der.Element(der.BitString, []byte{2, 1 << 2})
	endOfChain       = der.Element(der.Sequence)
	ecdsaWithSHA256  = der.Element(der.Sequence, der.ObjectID(1, 2, 840, 10045, 4, 3, 2))
	tlsUsageDER      = der.Element(der.Sequence, der.ObjectID(1, 3, 6, 1, 5, 5, 7, 3, 1), der.ObjectID(1, 3, 6, 1, 5, 5, 7, 3, 2)) // server, client

	idSubjectKey       = der.ObjectID(2, 5, 29, 14)
	idKeyUsage         = der.ObjectID(2, 5, 29, 15)
	idAltName          = der.ObjectID(2, 5, 29, 17)
	idBasicConstraints = der.ObjectID(2, 5, 29, 19)
	idAuthorityKey     = der.ObjectID(2, 5, 29, 35)
	idExtKeyUsage      = der.ObjectID(2, 5, 29, 37)
	idExtension        = der.ObjectID(extensionOID...)
)

// pathLen is the path length constraint of each kind of CA. Kinds without an entry are leaves.
var pathLen = map[Kind]int{kindAuthorityRoot: 1, kindIdentityRoot: 0, kindCross: 0, kindGroupRoot: 0, kindGroupBus: 0}

// spiffe returns the SPIFFE URI of a path in a trust domain.
func spiffe(domain, path string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: domain, Path: path}
}

// lastTime is the latest supported time. Nanoseconds since the Unix epoch up to it fit the
// arithmetic below.
var lastTime = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC)

// window is one period of leaf certificates with lifetime L. Window k begins at 2kL/3 after the
// Unix epoch; its leaf is issued until window k+1 begins. The leaf is valid from 60 s before the
// window's begin until L after it. So a unit that cannot renew for L/4 still has a valid leaf.
type window struct {
	index    uint64
	begin    time.Time
	next     time.Time // begin of window index+1
	lifetime time.Duration
}

// windowAt returns window ⌊3t/2L⌋, which is the same for all callers at time t. It refuses a
// lifetime outside the limits with "policy", and a time before 1970 or after 2200 with "clock".
func windowAt(lifetime time.Duration, t time.Time) (window, error) {
	if lifetime < wire.MinLifetime || lifetime > wire.MaxLifetime {
		return window{}, wire.Refuse(wire.BadPolicy, "window: certificate lifetime", lifetime, "3s to 24h")
	}
	if t.Unix() < 0 || t.After(lastTime) {
		return window{}, wire.Refuse(wire.ClockSkew, "window: time", t.UTC(), "1970 to 2200")
	}
	// Compute with 128 bits: 3t exceeds 64 bits from the year 2164 on.
	hi, lo := bits.Mul64(3, uint64(t.UnixNano()))
	k, _ := bits.Div64(hi, lo, 2*uint64(lifetime))
	return window{index: k, begin: windowBegin(k, lifetime), next: windowBegin(k+1, lifetime), lifetime: lifetime}, nil
}

// windowBegin returns the first nanosecond of window k: 2kL/3, rounded up.
func windowBegin(k uint64, lifetime time.Duration) time.Time {
	hi, lo := bits.Mul64(k, 2*uint64(lifetime))
	begin, rest := bits.Div64(hi, lo, 3)
	if rest > 0 {
		begin++
	}
	return time.Unix(0, int64(begin)).UTC()
}

// notBefore and notAfter return whole seconds, because certificates encode these. They round
// down, so that no leaf is valid after its lifetime.
func (w window) notBefore() time.Time { return w.begin.Add(-wire.WindowLead).Truncate(time.Second) }

func (w window) notAfter() time.Time { return w.begin.Add(w.lifetime).Truncate(time.Second) }

// renewBefore returns the end of the time over which renewals spread. It is a twelfth of the
// lifetime after the next window's begin, so that L/3 - L/12 = L/4 is left for an outage.
func (w window) renewBefore() time.Time { return w.next.Add(w.lifetime / 12) }
