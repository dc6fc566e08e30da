package identity

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"fmt"
	"math/big"

	"github.com/cohort-tee/cohort/internal/der"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxCSR is the maximum size of a certificate request in bytes. A request with only a P-256
// key has about 200.
const maxCSR = 4 << 10

// CSRKey returns the key of a PKCS #10 request, after verifying it. It refuses, with "csr", any
// request but a self-signed one for a P-256 key without subject, attributes and extensions.
func CSRKey(encoded []byte) (crypto.PublicKey, error) {
	if len(encoded) > maxCSR {
		return nil, wire.Refuse(wire.BadCSR, "csr: size in bytes", len(encoded), maxCSR)
	}
	request, err := x509.ParseCertificateRequest(encoded)
	if err != nil {
		return nil, wire.Refuse(wire.BadCSR, "csr: encoding", err, "PKCS #10, DER")
	}
	key, err := verifyP256(request.PublicKey)
	if err != nil {
		return nil, wire.Refuse(wire.BadCSR, "csr: key", request.PublicKeyAlgorithm, "ECDSA on P-256")
	}
	plain := plainRequest(publicKeyInfo(key), request.Signature)
	if !bytes.Equal(plain, encoded) {
		return nil, wire.Refuse(wire.BadCSR, "csr: size in bytes of subject and all", fmt.Sprintf("%d, %d", len(request.RawSubject), len(encoded)), fmt.Sprintf("an empty subject, no attribute, %d bytes with ecdsa-with-SHA256", len(plain)))
	}
	if err := request.CheckSignature(); err != nil {
		return nil, wire.Refuse(wire.BadCSR, "csr: signature", err, "a signature by the key in the request")
	}
	return key, nil
}

// plainRequest returns the request (RFC 2986, section 4) with this key and signature, an empty
// subject and no attributes.
func plainRequest(spki, signature []byte) []byte {
	version, subject, attributes := der.Integer(new(big.Int)), der.Element(der.Sequence), der.Element(der.ContextConstructed)
	info := der.Element(der.Sequence, version, subject, spki, attributes)
	return der.Element(der.Sequence, info, ecdsaWithSHA256, der.Element(der.BitString, []byte{0}, signature))
}
