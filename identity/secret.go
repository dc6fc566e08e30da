package identity

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Secret is the 32-byte root secret. It prints as "secret" in every format and
// cannot be marshalled. The zero Secret is refused by [Derive].
type Secret struct {
	// reveal is a function, nil in the zero Secret, because fmt prints the
	// unexported fields of a struct around a Secret without asking for Format,
	// with some verbs even through pointers.
	reveal func() [32]byte
}

// NewSecret draws a root secret. Only `authority init` calls it.
func NewSecret() Secret {
	var b [32]byte
	rand.Read(b[:]) // never returns an error: it ends the program instead
	return Secret{reveal: func() [32]byte { return b }}
}

// OpenSecret takes a root secret out of its unsealed form, 32 bytes that are
// not all zero, and keeps a copy. It refuses with "store-foreign".
func OpenSecret(b []byte) (Secret, error) {
	if len(b) != 32 || [32]byte(b) == [32]byte{} {
		return Secret{}, wire.Refuse(wire.StoreForeign, "root secret: size in bytes", len(b), "32, not all zero")
	}
	c := [32]byte(b)
	return Secret{reveal: func() [32]byte { return c }}, nil
}

// Expose gives a copy of the 32 bytes, to be sealed; nil for the zero Secret.
func (s Secret) Expose() []byte {
	if s.reveal == nil {
		return nil
	}
	b := s.reveal()
	return b[:]
}

// Format prints "secret", whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, "secret") }

// LogValue logs "secret".
func (s Secret) LogValue() slog.Value { return slog.StringValue("secret") }

// MarshalText refuses, and with it JSON and every other textual encoding.
func (s Secret) MarshalText() ([]byte, error) {
	return nil, errors.New("marshalling the root secret: it is never written")
}
