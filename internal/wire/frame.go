// Package wire defines everything on which other packages must agree to the byte: the framing
// inside digests, signatures and tags, the one table of labels, digests and identifiers, the
// SPIFFE path forms, size limits, and the closed list of reasons for refusals.
//
// It trusts nothing and decides nothing. It refuses encodings other than the canonical one: a
// length beyond its limit, another label than the expected one, trailing bytes.
//
// Files, each using those before it: digest.go, frame.go, header.go, label.go,
// limits.go, name.go, pem.go, refusal.go, secret_kept.go.
package wire

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
)

// Frame encodes fields under a label: one byte of label length, the label, and for each field
// four bytes of big-endian length and the field. The label names the use and its version, so
// no two uses share an encoding, and no two field lists of one use do.
//
// Frame panics if a field is 4 GiB or longer; callers bound sizes when they read bytes.
func Frame(label Label, fields ...[]byte) []byte {
	size := 1 + len(label)
	for _, f := range fields {
		size += 4 + len(f)
	}
	return AppendFrame(make([]byte, 0, size), label, fields...)
}

// AppendFrame appends the result of [Frame] to b, and panics as it does.
func AppendFrame(b []byte, label Label, fields ...[]byte) []byte {
	b = append(b, byte(len(label)))
	b = append(b, label...)
	for _, f := range fields {
		b = AppendField(b, f)
	}
	return b
}

// AppendField appends one more field to a framing, such as a signature over it.
func AppendField(framing, field []byte) []byte {
	if uint64(len(field)) > 1<<32-1 {
		panic("wire: field of 4 GiB or more")
	}
	framing = binary.BigEndian.AppendUint32(framing, uint32(len(field)))
	return append(framing, field...)
}

// Unframe is the inverse of [Frame] for a known label and exactly n fields, or
// any number of fields when n is negative. The fields are slices of b. Its
// error has the reason [Malformed].
func Unframe(label Label, b []byte, n int) ([][]byte, error) {
	head := 1 + len(label)
	if len(b) < head || int(b[0]) != len(label) || string(b[1:head]) != string(label) {
		return nil, Refuse(Malformed, "framing: label", "bytes that do not begin with the label", string(label))
	}
	var fields [][]byte
	for rest := b[head:]; len(rest) > 0; {
		if len(rest) < 4 {
			return nil, Refuse(Malformed, "framing: "+string(label), "a cut length", "4 bytes")
		}
		size := uint64(binary.BigEndian.Uint32(rest))
		rest = rest[4:]
		if uint64(len(rest)) < size {
			return nil, Refuse(Malformed, "framing: "+string(label), "a cut field", "its whole length")
		}
		fields = append(fields, rest[:size:size])
		rest = rest[size:]
	}
	if n >= 0 && len(fields) != n {
		return nil, Refuse(Malformed, "framing: "+string(label)+": number of fields", len(fields), n)
	}
	return fields, nil
}

// UnframeInto is [Unframe] for exactly len(fields) fields, without memory of
// its own.
func UnframeInto(fields [][]byte, label Label, b []byte) error {
	head := 1 + len(label)
	if len(b) < head || int(b[0]) != len(label) || string(b[1:head]) != string(label) {
		return Refuse(Malformed, "framing: label", "bytes that do not begin with the label", string(label))
	}
	rest := b[head:]
	for i := range fields {
		if len(rest) < 4 || uint64(len(rest)-4) < uint64(binary.BigEndian.Uint32(rest)) {
			return Refuse(Malformed, "framing: "+string(label), "a cut field", "its whole length")
		}
		end := 4 + int(binary.BigEndian.Uint32(rest))
		fields[i], rest = rest[4:end:end], rest[end:]
	}
	if len(rest) > 0 {
		return Refuse(Malformed, "framing: "+string(label)+": bytes left over", len(rest), 0)
	}
	return nil
}

// Hash returns SHA-256 over the framing of fields under label.
func Hash(label Label, fields ...[]byte) Digest {
	return sha256.Sum256(Frame(label, fields...))
}

// Hash512 returns SHA-512 over the framing of fields under label: the size of the
// report data of every TEE.
func Hash512(label Label, fields ...[]byte) [64]byte {
	return sha512.Sum512(Frame(label, fields...))
}

// Uint64 returns the eight big-endian bytes of v, the form of every number inside a
// framing.
func Uint64(v uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, v)
}
