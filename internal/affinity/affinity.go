// Package affinity selects units by a key of the client, so that requests with one key reach one
// unit, whose caches they find warm: an opaque key in the Cohort-Affinity field, and an order of
// the units for it (rendezvous hashing). Gateways and clients that know the same units compute
// the same order. When a unit leaves, only the keys that preferred it move.
//
// A key is a hint of an unknown client. No secret and no decision of trust depends on it. It may
// be chosen so that it prefers any unit; the user of the order bounds what it concentrates on
// one unit. A client sends a key only after a [Blinder] has hidden what its user named.
package affinity

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/internal/wire"
)

// maxKey is the longest key in characters.
const maxKey = 64

// blindSize is the size of a blinded key in bytes: two keys of a client are the same by chance
// with a probability of 2^-64 among 2^32 keys.
const blindSize = 16

// Key is an affinity key: 1 to 64 characters of base64url. The empty Key is none.
type Key string

// ParseKey returns the key in a Cohort-Affinity field, or none if the field contains anything
// else.
func ParseKey(field string) Key {
	if len(field) > maxKey {
		return ""
	}
	for _, c := range []byte(field) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' && c != '_' {
			return ""
		}
	}
	return Key(field)
}

// Score returns the preference of a unit for the key: the first 8 bytes, big-endian, of SHA-256
// over the key and the unit's id. The unit with the highest score is the first.
func (k Key) Score(unit wire.UnitID) uint64 {
	digest := wire.Hash(wire.LabelAffinity, []byte(k), unit[:])
	return binary.BigEndian.Uint64(digest[:])
}

// Sort sorts units by the key, the first one first. It computes each score once: a client that
// sends keys must not make a gateway with many units compute for long.
func Sort[T any](k Key, units []T, id func(T) wire.UnitID) {
	type scored struct {
		unit  T
		id    wire.UnitID
		score uint64
	}
	all := make([]scored, len(units))
	for i, u := range units {
		all[i] = scored{u, id(u), k.Score(id(u))}
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.score, a.score), bytes.Compare(a.id[:], b.id[:]))
	})
	for i, s := range all {
		units[i] = s.unit
	}
}

// Blinder makes keys of what a user names, such as a conversation or a user id, with a secret of
// its own: a gateway learns that two keys of one Blinder are the same, and neither what was named
// nor that another client named it too. The zero Blinder is ready for use. It is safe for
// concurrent use.
type Blinder struct {
	once   sync.Once
	secret [32]byte
}

// Blind returns the key for a name, and none for an empty name.
func (b *Blinder) Blind(name string) Key {
	if name == "" {
		return ""
	}
	b.once.Do(func() { rand.Read(b.secret[:]) }) // returns no error: on failure it ends the program
	mac := hmac.New(sha256.New, b.secret[:])
	mac.Write(wire.Frame(wire.LabelAffinityKey, []byte(name)))
	return Key(base64.RawURLEncoding.EncodeToString(mac.Sum(nil)[:blindSize]))
}
