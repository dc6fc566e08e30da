package unitauth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"fmt"
	"math/big"

	"github.com/cohort-tee/cohort/internal/wire"
)

// SignFields returns an ECDSA signature, ASN.1, over the framing of fields under label.
func SignFields(key *ecdsa.PrivateKey, label wire.Label, fields ...[]byte) ([]byte, error) {
	digest := wire.Hash(label, fields...)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err == nil {
		signature, err = lowerS(signature, key.Params())
	}
	if err != nil {
		return nil, fmt.Errorf("signing %s: %w", label, err)
	}
	return signature, nil
}

// lowerS returns the signature with the smaller s. ECDSA accepts both (r, s) and (r, n-s) for
// one message. Cohort accepts only the signature with the smaller s, so that no party without
// the key can make a second valid signature.
func lowerS(signature []byte, curve *elliptic.CurveParams) ([]byte, error) {
	var pair struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(signature, &pair); err != nil {
		return nil, err
	}
	if other := new(big.Int).Sub(curve.N, pair.S); other.Cmp(pair.S) < 0 {
		pair.S = other
	}
	return asn1.Marshal(pair)
}

// VerifyFields verifies a signature of [SignFields]. It refuses any other signature with
// "signature".
func VerifyFields(key *ecdsa.PublicKey, signature []byte, label wire.Label, fields ...[]byte) error {
	digest := wire.Hash(label, fields...)
	if !ecdsa.VerifyASN1(key, digest[:], signature) { // before lowerS, which then parses only valid signatures
		return wire.Refuse(wire.BadSignature, string(label), fmt.Sprint(len(signature), " bytes that do not verify"), "a signature of the unit")
	}
	if low, err := lowerS(signature, key.Params()); err != nil || !bytes.Equal(low, signature) {
		return wire.Refuse(wire.BadSignature, string(label), "a high s", "the lower s of the two (r, s) and (r, n-s)")
	}
	return nil
}
