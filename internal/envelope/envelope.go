// Package envelope reads and writes the parts of the trusted channel's messages that are not
// encrypted because a carrier needs them: the pin of an open request, the id of the session
// that a response opens, and the header of a sealed session or tombstone. The header of a
// request is [wire.Header].
//
// A manager routes requests and stores copies by these values, and holds no key to verify
// them with. Everything that this package returns is therefore unverified: a hint, until a
// unit has decrypted the message or a client has verified its signature. Parsers refuse, with
// the reason [wire.Malformed], what is not the one encoding of a value.
package envelope

import (
	"encoding/binary"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Suite is the one set of algorithms of the channel, as a byte of its messages:
// MLKEM768-X25519, HKDF-SHA256, AES-256-GCM, ECDSA P-256 with SHA-256.
const Suite = 1

// Kind is a kind of message that is sealed under a ring key.
type Kind uint8

// The kinds of sealed messages.
const (
	Session   Kind = iota // a session, which is also the client's ticket
	Tombstone             // the end of a session
)

// MaxSealed is the size in bytes that no sealed message exceeds.
const MaxSealed = 1 << 10

// labels are those of a sealed message and of its header.
func (k Kind) labels() (message, header wire.Label) {
	if k == Tombstone {
		return wire.LabelTombstone, wire.LabelTombstoneBound
	}
	return wire.LabelSealedSession, wire.LabelSealed
}

// Header is the associated data of a sealed message.
type Header struct {
	For     wire.Digest    // the identity, or role of a group, whose units open the message
	Ring    [16]byte       // id of the ring key
	Session wire.SessionID // the session that the message contains or ends
	Expiry  uint64         // of the session, in Unix seconds
	Sealer  wire.UnitID    // the unit that sealed the message
}

// Encode returns Frame(label of k, suite, identity or role, ring, session, expiry, sealer).
func (h Header) Encode(k Kind) []byte {
	_, label := k.labels()
	return wire.Frame(label, []byte{Suite}, h.For[:], h.Ring[:], h.Session[:], wire.Uint64(h.Expiry), h.Sealer[:])
}

func parseHeader(k Kind, raw []byte) (Header, error) {
	_, label := k.labels()
	var f [6][]byte
	if err := wire.UnframeInto(f[:], label, raw); err != nil {
		return Header{}, err
	}
	if len(f[0]) != 1 || f[0][0] != Suite {
		return Header{}, wire.Refuse(wire.Malformed, string(label)+": suite", f[0], Suite)
	}
	var h Header
	sizes, want := [...]int{len(f[1]), len(f[2]), len(f[3]), len(f[4]), len(f[5])}, [...]int{len(h.For), len(h.Ring), len(h.Session), 8, len(h.Sealer)}
	if sizes != want {
		return Header{}, wire.Refuse(wire.Malformed, string(label)+": sizes in bytes", sizes, want)
	}
	return Header{
		For: wire.Digest(f[1]), Ring: [16]byte(f[2]), Session: wire.SessionID(f[3]),
		Expiry: binary.BigEndian.Uint64(f[4]), Sealer: wire.UnitID(f[5]),
	}, nil
}

// Sealed is a sealed message in its parts.
type Sealed struct {
	Header
	AD, Nonce, Ciphertext []byte // AD is the encoded header, Nonce has 12 bytes
}

// Encode returns Frame(label of k, associated data, nonce, ciphertext).
func (s Sealed) Encode(k Kind) []byte {
	label, _ := k.labels()
	return wire.Frame(label, s.AD, s.Nonce, s.Ciphertext)
}

// ParseSealed takes a sealed message of a kind apart. Its slices are slices of raw. It
// refuses with [wire.TooLarge] a message above [MaxSealed].
func ParseSealed(k Kind, raw []byte) (Sealed, error) {
	label, _ := k.labels()
	if len(raw) > MaxSealed {
		return Sealed{}, wire.Refuse(wire.TooLarge, string(label)+": size in bytes", len(raw), MaxSealed)
	}
	var f [3][]byte
	if err := wire.UnframeInto(f[:], label, raw); err != nil {
		return Sealed{}, err
	}
	if len(f[1]) != 12 {
		return Sealed{}, wire.Refuse(wire.Malformed, string(label)+": size of the nonce", len(f[1]), 12)
	}
	h, err := parseHeader(k, f[0])
	return Sealed{Header: h, AD: f[0], Nonce: f[1], Ciphertext: f[2]}, err
}
