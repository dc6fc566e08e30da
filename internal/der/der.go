// Package der encodes ASN.1 by the distinguished encoding rules (X.690), element by element.
//
// It writes certificates, whose structure the caller knows, without a Go type for each part:
// [Element] joins parts that are already encoded. It does not parse, and it panics on values
// that the caller must have verified before.
package der

import (
	"bytes"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
)

// Tags of DER, with the bit of constructed ones.
const (
	Boolean            = 0x01
	TagInteger         = 0x02
	BitString          = 0x03
	OctetString        = 0x04
	Sequence           = 0x30
	Context            = 0x80 // [0] of context-specific ones
	ContextConstructed = 0xa0 // the same, constructed
)

// Element returns a DER element: a tag, a length, and the concatenated parts as content.
func Element(tag byte, parts ...[]byte) []byte {
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

// Integer returns the INTEGER of a number that is not negative.
func Integer(n *big.Int) []byte {
	b := n.Bytes()
	if len(b) == 0 || b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return Element(TagInteger, b)
}

// ObjectID returns an OBJECT IDENTIFIER.
func ObjectID(arcs ...int) []byte { return MustMarshal(asn1.ObjectIdentifier(arcs)) }

// MustMarshal returns the DER of a name, times or an object identifier that the caller made
// or verified before.
func MustMarshal(v any) []byte {
	der, err := asn1.Marshal(v)
	if err != nil {
		panic("der: encoding " + err.Error())
	}
	return der
}
