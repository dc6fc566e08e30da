package wire

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// Digest is a SHA-256 digest, 32 bytes. Its text form, in policy files, JSON
// and messages, is "sha256:" and 64 lower-case hexadecimal digits. The zero
// Digest means "none" and is never the digest of anything.
type Digest [32]byte

// Sum returns the plain SHA-256 of b, for files and keys that other tools digest too.
func Sum(b []byte) Digest { return sha256.Sum256(b) }

// ParseDigest reads 64 lower-case hexadecimal digits, not all zero, with or
// without the prefix "sha256:". Its error has the reason [Malformed].
func ParseDigest(s string) (Digest, error) {
	var d Digest
	digits := strings.TrimPrefix(s, "sha256:")
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) != len(d) || strings.ToLower(digits) != digits || Digest(b).IsZero() {
		return d, Refuse(Malformed, "digest", s, `"sha256:" and 64 lower-case hexadecimal digits`)
	}
	return Digest(b), nil
}

// String returns the text form with its prefix.
func (d Digest) String() string { return "sha256:" + d.Hex() }

// Hex returns the 64 digits alone, the form of a genesis digest on a command line.
func (d Digest) Hex() string { return hex.EncodeToString(d[:]) }

// IsZero reports whether d is the zero Digest.
func (d Digest) IsZero() bool { return d == Digest{} }

// MarshalText returns the text form, and empty text for the zero Digest.
func (d Digest) MarshalText() ([]byte, error) {
	if d.IsZero() {
		return nil, nil
	}
	return []byte(d.String()), nil
}

// UnmarshalText reads the text form; empty text is the zero Digest.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*d = Digest{}
		return nil
	}
	if !strings.HasPrefix(string(text), "sha256:") {
		return Refuse(Malformed, "digest", string(text), `a digest that begins with "sha256:"`)
	}
	var err error
	*d, err = ParseDigest(string(text))
	return err
}

// UnitID names one start of one unit: the first 16 bytes of the SHA-256 of the
// unit's signing key (SubjectPublicKeyInfo, DER).
type UnitID [16]byte

// UnitIDOf returns the id of the unit whose signing key is spki.
func UnitIDOf(spki []byte) UnitID {
	d := Sum(spki)
	return UnitID(d[:16])
}

// String returns 32 lower-case hexadecimal digits.
func (u UnitID) String() string { return hex.EncodeToString(u[:]) }

// MarshalText returns the 32 digits.
func (u UnitID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// UnmarshalText reads 32 lower-case hexadecimal digits.
func (u *UnitID) UnmarshalText(text []byte) error {
	b, err := hex.DecodeString(string(text))
	if err != nil || len(b) != len(u) || strings.ToLower(string(text)) != string(text) {
		return Refuse(Malformed, "unit id", string(text), "32 lower-case hexadecimal digits")
	}
	*u = UnitID(b)
	return nil
}

// RoleID identifies the units of one role of a group, which share keys: H("cohort group ring
// v1", group identity, role).
func RoleID(group Digest, role string) Digest { return Hash(LabelRing, group[:], []byte(role)) }

// NextHead returns the head of the history chain after one more step: the digest of the head
// before it, zero for the first, and of the step.
func NextHead(head Digest, step []byte) Digest {
	digest := Sum(step)
	return Hash(LabelHistory, head[:], digest[:])
}
