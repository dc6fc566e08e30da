package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Keys contains the keys that are derived from one root secret and do not depend on a policy. It
// is immutable and safe for concurrent use, and prints as "keys".
type Keys struct {
	secret     Secret
	root       *ecdsa.PrivateKey
	digest     attest.Digest // of the root's SubjectPublicKeyInfo
	nonce      macFunc
	store      macFunc
	credential macFunc
}

// macFunc computes HMAC-SHA256 over the framing of fields under label. The key is inside the
// function, so that fmt cannot print it.
type macFunc func(label wire.Label, fields [][]byte) []byte

// Derive derives the keys of a root secret. It refuses the zero Secret with "store-foreign".
func Derive(s Secret) (*Keys, error) {
	if s.reveal == nil {
		return nil, wire.Refuse(wire.StoreForeign, "root secret: size in bytes", 0, 32)
	}
	k := &Keys{secret: s}
	var err error
	if k.root, err = s.deriveSigningKey(wire.LabelRootKey); err != nil {
		return nil, err
	}
	if k.nonce, err = k.deriveMAC(wire.LabelNonceKey); err != nil {
		return nil, err
	}
	if k.store, err = k.deriveMAC(wire.LabelStoreKey); err != nil {
		return nil, err
	}
	if k.credential, err = k.deriveMAC(wire.LabelActivateKey); err != nil {
		return nil, err
	}
	k.digest = wire.Sum(publicKeyInfo(&k.root.PublicKey))
	return k, nil
}

// RootDigest returns the digest of the authority root: the SHA-256 of its SubjectPublicKeyInfo.
// The policy names the root by this digest.
func (k *Keys) RootDigest() attest.Digest { return k.digest }

// NonceMAC returns the MAC over a challenge, 32 bytes (HMAC-SHA256).
func (k *Keys) NonceMAC(fields ...[]byte) []byte {
	return k.nonce(wire.LabelNonce, fields)
}

// RowMAC returns the MAC over a stored row, 32 bytes; label is LabelRow or LabelAdopted.
func (k *Keys) RowMAC(label wire.Label, fields ...[]byte) []byte {
	return k.store(label, fields)
}

// CredentialSecret returns the secret in the credential of a challenge, 32 bytes. It is derived
// from the challenge's nonce, the device and the name of the device's key, so that no authority
// has to store it.
func (k *Keys) CredentialSecret(nonce []byte, in attest.TPMKeys) []byte {
	name := wire.Sum(in.Key)
	return k.credential(wire.LabelActivate, [][]byte{nonce, in.Device, name[:]})
}

// Format prints "keys" for every verb.
func (k Keys) Format(f fmt.State, _ rune) { io.WriteString(f, "keys") }

// deriveMAC derives a MAC key.
func (k *Keys) deriveMAC(use wire.Label) (macFunc, error) {
	key, err := k.secret.deriveBytes(use)
	if err != nil {
		return nil, err
	}
	return func(label wire.Label, fields [][]byte) []byte {
		h := hmac.New(sha256.New, key)
		h.Write(wire.Frame(label, fields...))
		return h.Sum(nil)
	}, nil
}

// verifyP256 refuses, with "request", public keys that are not on P-256.
func verifyP256(public crypto.PublicKey) (*ecdsa.PublicKey, error) {
	key, ok := public.(*ecdsa.PublicKey)
	if ok && key != nil && key.Curve == elliptic.P256() {
		if _, err := key.Bytes(); err == nil {
			return key, nil
		}
	}
	return nil, wire.Refuse(wire.BadRequest, "public key", fmt.Sprintf("%T", public), "ECDSA on P-256")
}

// publicKeyInfo returns the SubjectPublicKeyInfo, DER, of a derived key or of a key that
// verifyP256 accepted.
func publicKeyInfo(key *ecdsa.PublicKey) []byte {
	spki, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic("identity: encoding a key that is not on its curve: " + err.Error())
	}
	return spki
}
