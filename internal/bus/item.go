package bus

import (
	"encoding/binary"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Item is a sealed session or tombstone that the manager relays and stores. Session and Expiry
// are not encrypted, so that the manager can find the item and remove it when it expires. The
// encoding of an item is a frame of its kind with the body
//
//	session 24 ‖ expiry 8 (Unix seconds, big-endian) ‖ sealed bytes
//
// A batch is a sequence of items.
type Item struct {
	Kind    Kind // Sealed or Tombstone
	Session wire.SessionID
	Expiry  uint64 // Unix seconds
	Bytes   []byte // 1 to MaxSealed
}

// Sizes in bytes of an item's body and of a whole item, each without the sealed bytes.
const (
	itemFixed = 24 + 8
	itemHead  = frameHead + itemFixed
)

// ByteSize returns the size of the encoding in bytes.
func (i Item) ByteSize() int { return itemHead + len(i.Bytes) }

// Append appends the encoding to b.
func (i Item) Append(b []byte) []byte { return i.appendAs(b, i.Kind) }

func (i Item) appendAs(b []byte, k Kind) []byte {
	var expiry [8]byte
	binary.BigEndian.PutUint64(expiry[:], i.Expiry)
	return appendFrame(b, k, i.Session[:], expiry[:], i.Bytes)
}

// validate refuses an invalid item with [wire.Malformed].
func (i Item) validate() error {
	switch {
	case i.Kind != Sealed && i.Kind != Tombstone:
		return wire.Refuse(wire.Malformed, "item: kind", i.Kind, "push or tombstone")
	case len(i.Bytes) == 0 || len(i.Bytes) > MaxSealed:
		return wire.Refuse(wire.Malformed, "item: sealed bytes", len(i.Bytes), "1 to 4096")
	}
	return nil
}

// NextItem parses the first item of b and returns the rest of b. The item's bytes are a slice
// of b. Its error has the reason [wire.Malformed].
func NextItem(b []byte) (item Item, rest []byte, err error) {
	k, body, rest, err := nextFrame(b)
	if err != nil {
		return Item{}, nil, err
	}
	item, err = parseItem(k, body)
	return item, rest, err
}

// parseItem parses the body of a frame as an item. The item's bytes are a slice of body.
func parseItem(k Kind, body []byte) (Item, error) {
	if len(body) < itemFixed {
		return Item{}, wire.Refuse(wire.Malformed, "item: size in bytes", len(body), "at least 33")
	}
	i := Item{Kind: k, Session: wire.SessionID(body[:24]), Expiry: binary.BigEndian.Uint64(body[24:]), Bytes: body[itemFixed:]}
	if err := i.validate(); err != nil {
		return Item{}, err
	}
	return i, nil
}
