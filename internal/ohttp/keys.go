package ohttp

import (
	"crypto/hpke"
	"encoding/binary"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
)

// maxKeys is the largest list of key configurations, in bytes.
const maxKeys = 4 << 10

// PublicKey is the key that a client encrypts requests under, with the header of those.
type PublicKey struct {
	Header
	Public hpke.PublicKey // nil: none
}

// AppendKey appends the key configuration (RFC 9458, section 3.1) of a public key of a KEM of
// the table, with its length, as application/ohttp-keys has them.
func AppendKey(b []byte, id byte, kem KEM, public hpke.PublicKey) []byte {
	one := binary.BigEndian.AppendUint16([]byte{id}, kem.ID())
	one = append(one, public.Bytes()...)
	one = binary.BigEndian.AppendUint16(one, uint16(4*len(kem.aeads)))
	for _, aead := range kem.aeads {
		one = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(one, hkdfSHA256), aead)
	}
	return append(binary.BigEndian.AppendUint16(b, uint16(len(one))), one...)
}

// ParseKeys reads application/ohttp-keys and returns the first key of known algorithms. It
// refuses, with "malformed", a list without one.
func ParseKeys(b []byte) (found PublicKey, err error) {
	if len(b) > maxKeys {
		return PublicKey{}, wire.Refuse(wire.TooLarge, "one-off keys: size in bytes", len(b), maxKeys)
	}
	for len(b) > 0 {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return PublicKey{}, wire.Refuse(wire.Malformed, "one-off keys: bytes left", len(b), "the whole length of a key")
		}
		end := 2 + int(binary.BigEndian.Uint16(b))
		key, err := parseKey(b[2:end])
		if err != nil {
			return PublicKey{}, err
		}
		if found.Public == nil {
			found = key
		}
		b = b[end:]
	}
	if found.Public == nil {
		return PublicKey{}, wire.Refuse(wire.Malformed, "one-off keys: number of keys of a known kind", 0, "a key of MLKEM768-X25519 or X25519")
	}
	return found, nil
}

// parseKey reads one key configuration. One of unknown algorithms has no public key.
func parseKey(b []byte) (key PublicKey, err error) {
	if len(b) < 3 {
		return PublicKey{}, wire.Refuse(wire.Malformed, "one-off key: size in bytes", len(b), "at least 3: id and KEM")
	}
	id := binary.BigEndian.Uint16(b[1:])
	i := slices.IndexFunc(KEMs[:], func(k KEM) bool { return k.ID() == id })
	if i < 0 {
		return PublicKey{}, nil
	}
	rest := b[3:]
	size := KEMs[i].keySize
	if len(rest) < size+2 || len(rest)-size-2 != int(binary.BigEndian.Uint16(rest[size:])) || len(rest) == size+2 || (len(rest)-size-2)%4 != 0 {
		return PublicKey{}, wire.Refuse(wire.Malformed, "one-off key: size in bytes", len(b), "that of its KEM and pairs of algorithms")
	}
	for pairs := rest[size+2:]; len(pairs) > 0; pairs = pairs[4:] {
		h := Header{b[0], id, binary.BigEndian.Uint16(pairs), binary.BigEndian.Uint16(pairs[2:])}
		if h.kdf != hkdfSHA256 || h.aead != aes128 && h.aead != aes256 {
			continue
		}
		if key.Public, err = KEMs[i].NewPublicKey(rest[:size]); err != nil {
			return PublicKey{}, wire.Refuse(wire.Malformed, "one-off key", err, "a public key")
		}
		key.Header = h
		break
	}
	return key, nil
}
