package identity

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"

	"github.com/cohort-tee/cohort/internal/wire"
)

// maxCSR bounds a certificate request, in bytes. One with a P-256 key and
// nothing else is about 200.
const maxCSR = 4 << 10

// CSRKey verifies a PKCS #10 request that contains a key and nothing else: P-256, self-signed,
// empty subject, no attribute and no extension. It refuses other requests with "csr".
func CSRKey(der []byte) (crypto.PublicKey, error) {
	if len(der) > maxCSR {
		return nil, wire.Refuse(wire.BadCSR, "csr: size in bytes", len(der), maxCSR)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, wire.Refuse(wire.BadCSR, "csr: encoding", err, "PKCS #10, DER")
	}
	key, err := p256(request.PublicKey)
	if err != nil {
		return nil, wire.Refuse(wire.BadCSR, "csr: key", request.PublicKeyAlgorithm, "ECDSA on P-256")
	}
	plain, err := plainRequest(publicKeyInfo(key), request.Signature)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(plain, der) {
		return nil, wire.Refuse(wire.BadCSR, "csr: size in bytes of subject, attributes and all", fmt.Sprintf("%d, %d, %d", len(request.RawSubject), len(request.Attributes), len(der)), fmt.Sprintf("an empty subject, no attribute, %d bytes with ecdsa-with-SHA256", len(plain)))
	}
	if err := request.CheckSignature(); err != nil {
		return nil, wire.Refuse(wire.BadCSR, "csr: signature", err, "a signature by the key in the request")
	}
	return key, nil
}

// plainRequest returns the request (RFC 2986, section 4) for a key with this signature that
// has neither subject nor attributes.
func plainRequest(spki, signature []byte) ([]byte, error) {
	type requestInfo struct {
		Version    int
		Subject    pkix.RDNSequence
		Key        asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	var ecdsaWithSHA256 = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}
	der, err := asn1.Marshal(struct {
		Info      requestInfo
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		Info:      requestInfo{Subject: pkix.RDNSequence{}, Key: asn1.RawValue{FullBytes: spki}},
		Algorithm: pkix.AlgorithmIdentifier{Algorithm: ecdsaWithSHA256},
		Signature: asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	})
	if err != nil {
		return nil, fmt.Errorf("encoding plain csr: %w", err)
	}
	return der, nil
}
