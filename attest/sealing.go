package attest

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"

	"github.com/cohort-tee/cohort/internal/wire"
)

// OwnKey is the key that a TEE derives on one chip for one program alone, as
// SEV-SNP and SGX do. What it sealed, another program, chip or debug state
// cannot unseal, so it seals to the caller and to no other program.
type OwnKey struct {
	Key         []byte      // at least 16 bytes that only this program gets
	Measurement Measurement // of this program, with what the TEE itself does not mix into the key
}

// Seal encrypts a secret of at most 64 KiB. Of the reference values one must be
// the caller's own; the others cannot unseal it, which is stricter than they
// ask. It refuses with "not-this-device" to seal to others only.
func (k OwnKey) Seal(secret []byte, to []ReferenceValue) ([]byte, error) {
	if len(secret) > wire.MaxSealed {
		return nil, wire.Refuse(wire.TooLarge, "sealing: size in bytes", len(secret), wire.MaxSealed)
	}
	if !k.isAmong(to) {
		return nil, wire.Refuse(wire.NotThisDevice, "sealing: programs to seal to", fmt.Sprintf("%d programs without the running one", len(to)),
			"the running one: "+string(k.Measurement.Platform)+" seals to no other")
	}
	aead, err := k.cipher()
	if err != nil {
		return nil, err
	}
	return wire.Frame(wire.LabelOwnSeal, aead.Seal(nil, nil, secret, nil)), nil
}

// Unseal returns what this program sealed on this chip. It refuses anything
// else with "malformed" or "signature".
func (k OwnKey) Unseal(sealed []byte) ([]byte, error) {
	parts, err := wire.Unframe(wire.LabelOwnSeal, sealed, 1)
	if err != nil {
		return nil, err
	}
	aead, err := k.cipher()
	if err != nil {
		return nil, err
	}
	secret, err := aead.Open(nil, nil, parts[0], nil)
	if err != nil {
		return nil, wire.Refuse(wire.BadSignature, "unsealing", "bytes that another program, chip or firmware sealed", "what this one sealed")
	}
	return secret, nil
}

func (k OwnKey) isAmong(to []ReferenceValue) bool {
	for _, reference := range to {
		if Match(reference, k.Measurement) == nil {
			return true
		}
	}
	return len(to) == 0
}

// cipher is AES-256-GCM with random nonces, under a key that depends on the whole
// measurement.
func (k OwnKey) cipher() (cipher.AEAD, error) {
	if len(k.Key) < 16 {
		return nil, wire.Refuse(wire.NotThisDevice, "sealing: size of the TEE's key in bytes", len(k.Key), "at least 16")
	}
	info := wire.Frame(wire.LabelOwnSealKey, k.Measurement.Bytes())
	key, err := hkdf.Key(sha256.New, k.Key, nil, string(info), 32)
	if err != nil {
		return nil, fmt.Errorf("deriving the sealing key: %w", err)
	}
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("making the sealing cipher: %w", err)
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// NoSealer is the [Sealer] of platforms that keep nothing for a program from one
// start to the next. It refuses everything with "not-this-device".
type NoSealer struct{ Platform Platform }

var _ Sealer = NoSealer{}

// Seal refuses.
func (s NoSealer) Seal(context.Context, []byte, []ReferenceValue) ([]byte, error) {
	return nil, s.refuse()
}

// Unseal refuses.
func (s NoSealer) Unseal(context.Context, []byte) ([]byte, error) { return nil, s.refuse() }

func (s NoSealer) refuse() error {
	return wire.Refuse(wire.NotThisDevice, "sealing: not this platform", string(s.Platform)+" keeps no secret from one start to the next",
		"an authority on a platform that seals (snp, sgx, tpm); units run on any")
}
