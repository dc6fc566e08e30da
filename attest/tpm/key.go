package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"fmt"
	"math/big"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/crypto/cryptobyte"
)

// Attributes of a TPM object (TPMA_OBJECT).
const (
	fixedTPM             = 1 << 1
	fixedParent          = 1 << 4
	sensitiveDataOrigin  = 1 << 5
	encryptedDuplication = 1 << 11
	restricted           = 1 << 16
	decrypts             = 1 << 17
	signs                = 1 << 18
)

// A key that attests was made inside the TPM, never leaves it, and signs nothing
// but what the TPM itself states.
const (
	attesting    = restricted | signs | fixedTPM | fixedParent | sensitiveDataOrigin
	notAttesting = decrypts | encryptedDuplication
)

// minRSA is the smallest RSA attestation key, in bits.
const minRSA = 2048

// parseKey reads the public area of an attestation key (TPMT_PUBLIC): ECDSA on
// P-256 or RSASSA, with SHA-256, restricted, fixedTPM, fixedParent and
// sensitiveDataOrigin. That the key is in a TPM, and in which, only credential
// activation or a certificate states. It refuses with "malformed", and with "chain"
// a key that is no attestation key.
func parseKey(public []byte) (crypto.PublicKey, error) {
	var kind, nameAlg uint16
	var attributes uint32
	var authPolicy cryptobyte.String
	s := cryptobyte.String(public)
	if !s.ReadUint16(&kind) || !s.ReadUint16(&nameAlg) || nameAlg != algSHA256 ||
		!s.ReadUint32(&attributes) || !s.ReadUint16LengthPrefixed(&authPolicy) {
		return nil, errKey
	}
	key := readKey(kind, &s)
	if key == nil || !s.Empty() {
		return nil, errKey
	}
	if attributes&attesting != attesting || attributes&notAttesting != 0 {
		return nil, wire.Refuse(wire.BadChain, "tpm: attributes of the attestation key", fmt.Sprintf("%#x", attributes),
			"restricted, sign, fixedTPM, fixedParent, sensitiveDataOrigin, and neither decrypt nor encryptedDuplication")
	}
	return key, nil
}

var errKey = wire.Refuse(wire.Malformed, "tpm: attestation key", "a key of another structure", "a TPMT_PUBLIC: ECDSA P-256 or RSASSA, with SHA-256")

// readKey reads parameters and unique value; nil is no key that attests.
func readKey(kind uint16, s *cryptobyte.String) crypto.PublicKey {
	var symmetric, scheme, hash uint16
	if !s.ReadUint16(&symmetric) || symmetric != algNull || !s.ReadUint16(&scheme) || !s.ReadUint16(&hash) || hash != algSHA256 {
		return nil
	}
	switch {
	case kind == algECC && scheme == algECDSA:
		return readECC(s)
	case kind == algRSA && scheme == algRSASSA:
		return readRSA(s)
	}
	return nil
}

func readECC(s *cryptobyte.String) crypto.PublicKey {
	var curve, kdf uint16
	var x, y cryptobyte.String
	if !s.ReadUint16(&curve) || curve != curveP256 || !s.ReadUint16(&kdf) || kdf != algNull ||
		!s.ReadUint16LengthPrefixed(&x) || !s.ReadUint16LengthPrefixed(&y) || !scalarOK(x) || !scalarOK(y) {
		return nil
	}
	point := append(append([]byte{4}, x...), y...)
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), point)
	if err != nil {
		return nil
	}
	return key
}

func readRSA(s *cryptobyte.String) crypto.PublicKey {
	var size uint16
	var exponent uint32
	var modulus cryptobyte.String
	if !s.ReadUint16(&size) || size < minRSA || !s.ReadUint32(&exponent) || exponent != 0 && exponent != 65537 ||
		!s.ReadUint16LengthPrefixed(&modulus) || len(modulus) != int(size)/8 || modulus[0]&0x80 == 0 {
		return nil
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 65537} // 0 represents it
}

// nameOf is the name of a key without its algorithm, which is always SHA-256.
func nameOf(public []byte) attest.Digest { return wire.Sum(public) }
