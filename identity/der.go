package identity

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
)

// Tags of DER, with the bit of constructed ones.
const (
	tagBoolean     = 0x01
	tagInteger     = 0x02
	tagBitString   = 0x03
	tagOctetString = 0x04
	tagSequence    = 0x30
	tagContext     = 0x80 // [0] of context-specific ones
	tagContextCons = 0xa0 // the same, constructed
)

// derElement returns a DER element: a tag, a length, and the concatenated parts as content.
func derElement(tag byte, parts ...[]byte) []byte {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	out := append(make([]byte, 0, n+6), tag)
	if n < 0x80 {
		out = append(out, byte(n))
	} else {
		long := bytes.TrimLeft(binary.BigEndian.AppendUint32(nil, uint32(n)), "\x00")
		out = append(append(out, 0x80|byte(len(long))), long...)
	}
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// derInteger returns the INTEGER of a number that is not negative.
func derInteger(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) == 0 || b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return derElement(tagInteger, b)
}

// derObjectID returns an OBJECT IDENTIFIER.
func derObjectID(arcs ...int) []byte { return mustMarshal(asn1.ObjectIdentifier(arcs)) }

// mustMarshal returns the DER of a name, times or an object identifier that were made here or
// verified before.
func mustMarshal(v any) []byte {
	der, err := asn1.Marshal(v)
	if err != nil {
		panic("identity: encoding " + err.Error())
	}
	return der
}
