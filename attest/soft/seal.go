package soft

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// SealingKeySize is the size of a sealing key in bytes (AES-256).
const SealingKeySize = 32

// Seal encrypts a secret of at most 64 KiB so that only a caller whose
// measurement matches one of the reference values can unseal it; with none
// it is sealed to the caller alone. The reference values are inside the
// ciphertext.
func Seal(key, secret []byte, caller attest.Measurement, to []attest.ReferenceValue) ([]byte, error) {
	if len(secret) > wire.MaxSealed {
		return nil, wire.Refuse(wire.TooLarge, "sealing: size in bytes", len(secret), wire.MaxSealed)
	}
	if len(to) == 0 {
		to = []attest.ReferenceValue{caller}
	}
	fields := [][]byte{secret}
	for _, reference := range to {
		fields = append(fields, reference.Bytes())
	}
	aead, err := sealingCipher(key)
	if err != nil {
		return nil, err
	}
	inner := wire.Frame(wire.LabelSoftSecret, fields...)
	sealed := wire.Frame(wire.LabelSoftSeal, aead.Seal(nil, nil, inner, nil))
	if len(sealed) > wire.MaxSealedBlob {
		return nil, wire.Refuse(wire.TooLarge, "sealing: size of secret and reference values", len(sealed), wire.MaxSealedBlob)
	}
	return sealed, nil
}

// Unseal returns a secret to a caller that it was sealed to. It refuses with
// "malformed" or "signature" what this key did not seal, and with "measurement"
// any other caller.
func Unseal(key, sealed []byte, caller attest.Measurement) ([]byte, error) {
	parts, err := wire.Unframe(wire.LabelSoftSeal, sealed, 1)
	if err != nil {
		return nil, err
	}
	aead, err := sealingCipher(key)
	if err != nil {
		return nil, err
	}
	inner, err := aead.Open(nil, nil, parts[0], nil)
	if err != nil {
		return nil, wire.Refuse(wire.BadSignature, "unsealing", "bytes this device did not seal", "its own")
	}
	fields, err := wire.Unframe(wire.LabelSoftSecret, inner, -1)
	if err != nil || len(fields) < 2 {
		return nil, wire.Refuse(wire.Malformed, "unsealing: contents", fmt.Sprintf("%d fields, error %v", len(fields), err), "a secret and its reference values")
	}
	if err := sealedTo(fields[1:], caller); err != nil {
		return nil, err
	}
	return fields[0], nil
}

// sealedTo refuses, with the difference from the last of the reference values,
// a caller that matches none of them.
func sealedTo(references [][]byte, caller attest.Measurement) error {
	var refused error
	for _, b := range references {
		reference, err := attest.ParseMeasurement(b)
		if err != nil {
			return err
		}
		if refused = attest.Match(reference, caller); refused == nil {
			return nil
		}
	}
	return refused
}

// sealingCipher is AES-256-GCM that draws a random nonce for each secret and
// puts it before the ciphertext; a daemon seals far fewer than 2^32 secrets.
func sealingCipher(key []byte) (cipher.AEAD, error) {
	if len(key) != SealingKeySize {
		return nil, wire.Refuse(wire.Internal, "sealing: key size", len(key), SealingKeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("making the sealing cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}
