package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Secret is the 32-byte root secret of an authority or of one roster. It prints as "secret" in
// every format and cannot be marshalled. [Derive] and [DeriveGroup] refuse the zero Secret.
type Secret struct {
	// reveal returns the secret; it is nil in the zero Secret. It is a function because fmt
	// does not call Format on unexported fields: it would print the bytes of a Secret inside
	// another struct, with some verbs even through pointers.
	reveal func() [32]byte
}

// NewSecret returns a random root secret. `authority init` calls it, and an authority calls it
// for each roster that names the authority.
func NewSecret() Secret {
	var b [32]byte
	rand.Read(b[:]) // never returns an error: it ends the program instead
	return Secret{reveal: func() [32]byte { return b }}
}

// OpenSecret makes a root secret from a copy of its unsealed bytes: 32 bytes, not all zero. It
// refuses any other bytes with "store-foreign".
func OpenSecret(b []byte) (Secret, error) {
	if len(b) != 32 || [32]byte(b) == [32]byte{} {
		return Secret{}, wire.Refuse(wire.StoreForeign, "root secret: size in bytes", len(b), "32, not all zero")
	}
	c := [32]byte(b)
	return Secret{reveal: func() [32]byte { return c }}, nil
}

// Expose returns a copy of the 32 bytes for sealing. It returns nil for the zero Secret.
func (s Secret) Expose() []byte {
	if s.reveal == nil {
		return nil
	}
	b := s.reveal()
	return b[:]
}

// deriveBytes derives 32 bytes for one use with HKDF-SHA256 (RFC 5869), without salt, and with
// the framing of label and fields as info.
func (s Secret) deriveBytes(label wire.Label, fields ...[]byte) ([]byte, error) {
	b, err := hkdf.Key(sha256.New, s.Expose(), nil, string(wire.Frame(label, fields...)), 32)
	if err != nil {
		return nil, fmt.Errorf("deriving %s: %w", label, err)
	}
	return b, nil
}

// deriveSigningKey derives a P-256 key by rejection sampling. It derives 32-byte strings with a
// counter byte 0, 1, … as last field. The first string that is a scalar of the curve is the key,
// almost always that of 0. Rejection sampling is exact and needs no arithmetic on secrets.
func (s Secret) deriveSigningKey(label wire.Label, fields ...[]byte) (*ecdsa.PrivateKey, error) {
	for counter := range 256 {
		scalar, err := s.deriveBytes(label, append(slices.Clip(fields), []byte{byte(counter)})...)
		if err != nil {
			return nil, err
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), scalar); err == nil {
			return key, nil
		}
	}
	return nil, fmt.Errorf("deriving %s: no scalar in 256 tries", label)
}

// Format prints "secret" for every verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "secret") }

// LogValue logs "secret".
func (s Secret) LogValue() slog.Value { return slog.StringValue("secret") }

// MarshalText returns an error, so that JSON and every other textual encoding refuse the secret.
func (s Secret) MarshalText() ([]byte, error) {
	return nil, errors.New("marshalling the root secret: it is never written")
}
