package bhttp

import (
	"encoding/binary"
	"math/bits"

	"github.com/cohort-tee/cohort/internal/wire"
)

// AppendVarint appends an integer of at most 62 bits as RFC 9000, section 16,
// encodes it, in the fewest bytes.
func AppendVarint(b []byte, v uint64) []byte {
	switch VarintSize(v) {
	case 1:
		return append(b, byte(v))
	case 2:
		return binary.BigEndian.AppendUint16(b, 1<<14|uint16(v))
	case 4:
		return binary.BigEndian.AppendUint32(b, 2<<30|uint32(v))
	}
	return binary.BigEndian.AppendUint64(b, 3<<62|v)
}

// VarintSize is the number of bytes that AppendVarint appends.
func VarintSize(v uint64) int {
	switch n := bits.Len64(v); {
	case n <= 6:
		return 1
	case n <= 14:
		return 2
	case n <= 30:
		return 4
	}
	return 8
}

// parseVarint reads an integer in its shortest encoding and returns what follows it.
func parseVarint(b []byte) (v uint64, rest []byte, err error) {
	if len(b) == 0 || len(b) < 1<<(b[0]>>6) {
		return 0, nil, wire.Refuse(wire.Malformed, "binary http: bytes of an integer", len(b), "all its bytes")
	}
	size := 1 << (b[0] >> 6)
	v = uint64(b[0] & 0x3f)
	for _, c := range b[1:size] {
		v = v<<8 | uint64(c)
	}
	if VarintSize(v) != size {
		return 0, nil, wire.Refuse(wire.Malformed, "binary http: bytes of an integer", size, VarintSize(v))
	}
	return v, b[size:], nil
}
