package bus

import (
	"encoding/binary"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Kind says what an item is.
type Kind byte

// The kinds of items.
const (
	Sealed    Kind = 1 // a session, sealed under a ring key
	Tombstone Kind = 2 // a session's end, sealed likewise
)

// Item is what the manager relays and keeps: sealed bytes, and beside them in
// the clear what a relay needs in order to find and to forget them. Its
// encoding is
//
//	kind 1 ‖ session 24 ‖ expiry 8 (Unix seconds) ‖ length 4 ‖ bytes
//
// with numbers big-endian, and a batch is items one after the other.
type Item struct {
	Kind    Kind
	Session wire.SessionID
	Expiry  uint64 // Unix seconds
	Bytes   []byte // 1 to MaxSealed
}

// itemHead is the size of an item without its bytes.
const itemHead = 1 + 24 + 8 + 4

// Size is the size of the encoding in bytes.
func (i Item) Size() int { return itemHead + len(i.Bytes) }

// Append adds the encoding to b.
func (i Item) Append(b []byte) []byte {
	b = append(b, byte(i.Kind))
	b = append(b, i.Session[:]...)
	b = binary.BigEndian.AppendUint64(b, i.Expiry)
	b = binary.BigEndian.AppendUint32(b, uint32(len(i.Bytes)))
	return append(b, i.Bytes...)
}

// NextItem reads the first item of b and gives what follows it. The item's
// bytes are a slice of b. Its error has the reason [wire.Malformed].
func NextItem(b []byte) (item Item, rest []byte, err error) {
	if len(b) < itemHead {
		return Item{}, nil, wire.Refuse(wire.Malformed, "item: size in bytes", len(b), itemHead)
	}
	item = Item{Kind: Kind(b[0]), Session: wire.SessionID(b[1:25]), Expiry: binary.BigEndian.Uint64(b[25:])}
	size := binary.BigEndian.Uint32(b[33:])
	b = b[itemHead:]
	switch {
	case item.Kind != Sealed && item.Kind != Tombstone:
		return Item{}, nil, wire.Refuse(wire.Malformed, "item: kind", item.Kind, "a known one")
	case size == 0 || size > MaxSealed:
		return Item{}, nil, wire.Refuse(wire.Malformed, "item: sealed bytes", size, MaxSealed)
	case uint64(size) > uint64(len(b)):
		return Item{}, nil, wire.Refuse(wire.Malformed, "item: sealed bytes", len(b), size)
	}
	item.Bytes = b[:size:size]
	return item, b[size:], nil
}

// oneItem reads an encoding of exactly one item.
func oneItem(b []byte) (Item, error) {
	item, rest, err := NextItem(b)
	if err == nil && len(rest) > 0 {
		err = wire.Refuse(wire.Malformed, "item: bytes behind it", len(rest), 0)
	}
	return item, err
}
