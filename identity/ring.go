package identity

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// MaxRingLifetime is the longest lifetime of a ring key.
const MaxRingLifetime = time.Hour

// RingLifetime returns the lifetime of a ring key, for a lifetime of certificates. The key can
// open sessions for the same time again.
func RingLifetime(leaf time.Duration) time.Duration { return min(MaxRingLifetime, 2*leaf) }

// RingID names a ring key: the first 16 bytes of H("cohort ring id v1", key).
type RingID [16]byte

// String returns 32 lower-case hexadecimal digits.
func (r RingID) String() string { return hex.EncodeToString(r[:]) }

// RingKey encrypts sessions between units of one identity: 32 random bytes. It is never
// derived from the root secret and never stored. It prints as "secret" in every format and
// cannot be marshalled. It is safe for concurrent use.
type RingKey struct {
	id  RingID
	end time.Time

	mu     sync.RWMutex    // guards reveal against Erase
	reveal func() [32]byte // nil once erased
	erase  func()
}

// NewRingKey draws a random ring key that opens sessions until end. Only an authority calls
// it.
func NewRingKey(end time.Time) *RingKey {
	var b [32]byte
	wire.Secretly(func() { rand.Read(b[:]) }) // never returns an error: it ends the program instead
	defer clear(b[:])
	return newRingKey(b[:], end)
}

// OpenRingKey copies a ring key from a certificate report: 32 bytes that are not all zero. It
// refuses other bytes with "malformed".
func OpenRingKey(b []byte, end time.Time) (*RingKey, error) {
	if len(b) != 32 || [32]byte(b) == [32]byte{} || end.IsZero() {
		return nil, wire.Refuse(wire.Malformed, "ring key: size in bytes", len(b), "32, not all zero, with an end")
	}
	return newRingKey(b, end), nil
}

func newRingKey(b []byte, end time.Time) *RingKey {
	k := &RingKey{end: end}
	wire.Secretly(func() {
		key := new([32]byte)
		copy(key[:], b)
		k.reveal, k.erase = func() [32]byte { return *key }, func() { clear(key[:]) }
		digest := wire.Hash(wire.LabelRingID, key[:])
		k.id = RingID(digest[:16])
	})
	return k
}

// ID returns the name of the key.
func (k *RingKey) ID() RingID { return k.id }

// Expires returns the end of the last session under the key.
func (k *RingKey) Expires() time.Time { return k.end }

// Until returns the same key with another end.
func (k *RingKey) Until(end time.Time) *RingKey {
	b := k.Expose()
	defer clear(b)
	return newRingKey(b, end)
}

// Expose returns a copy of the 32 bytes, for a certificate report; zeros once the key is
// erased.
func (k *RingKey) Expose() []byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	b := make([]byte, 32)
	if k.reveal != nil {
		wire.Secretly(func() { *(*[32]byte)(b) = k.reveal() })
	}
	return b
}

// Derive returns HKDF-SHA256 of the key without salt, with the framing of the fields under
// label as info. It refuses with "ring" once the key is erased.
func (k *RingKey) Derive(size int, label wire.Label, fields ...[]byte) (key []byte, err error) {
	k.mu.RLock()
	defer k.mu.RUnlock()
	if k.reveal == nil {
		return nil, wire.Refuse(wire.UnknownRing, "ring key "+k.id.String(), "an erased key", "a key that is not erased")
	}
	wire.Secretly(func() {
		secret := k.reveal()
		defer clear(secret[:])
		key, err = hkdf.Key(sha256.New, secret[:], nil, string(wire.Frame(label, fields...)), size)
	})
	if err != nil {
		return nil, fmt.Errorf("deriving %s: %w", label, err)
	}
	return key, nil
}

// Erase overwrites the key. It opens nothing afterwards.
func (k *RingKey) Erase() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reveal != nil {
		k.erase()
		k.reveal, k.erase = nil, nil
	}
}

// Format prints "secret", whatever the verb.
func (k *RingKey) Format(f fmt.State, _ rune) { io.WriteString(f, "secret") }

// LogValue logs "secret".
func (k *RingKey) LogValue() slog.Value { return slog.StringValue("secret") }

// MarshalText refuses, and with it JSON and every other textual encoding.
func (k *RingKey) MarshalText() ([]byte, error) {
	return nil, errors.New("marshalling a ring key: it is written to certificate reports only")
}

// RingKeys are the keys of one kind of session. A unit seals under Current and opens with all
// of them. Previous is nil if no session under it can be open; without Current nothing is
// sealed.
type RingKeys struct {
	Previous, Current, Next *RingKey
}

// NewRingKeys draws random keys of which the first is current from now on.
func NewRingKeys(now time.Time, lifetime time.Duration) RingKeys {
	return RingKeys{Current: NewRingKey(now.Add(2 * lifetime)), Next: NewRingKey(now.Add(3 * lifetime))}
}

// Rotate makes Next current and draws another Next. The key that was current opens sessions for
// one more lifetime.
func (k RingKeys) Rotate(now time.Time, lifetime time.Duration) RingKeys {
	return RingKeys{
		Previous: k.Current.Until(now.Add(lifetime)),
		Current:  k.Next.Until(now.Add(2 * lifetime)),
		Next:     NewRingKey(now.Add(3 * lifetime)),
	}
}

// WithoutExpired returns k without a Previous that has ended.
func (k RingKeys) WithoutExpired(now time.Time) RingKeys {
	if k.Previous != nil && !now.Before(k.Previous.end) {
		k.Previous = nil
	}
	return k
}

// Keys lists the keys that are not nil, Current first.
func (k RingKeys) Keys() []*RingKey {
	var list []*RingKey
	for _, key := range []*RingKey{k.Current, k.Previous, k.Next} {
		if key != nil {
			list = append(list, key)
		}
	}
	return list
}

// RingHolders says which units have a ring key. A strict key belongs to the units of a
// release, or in a group of one role; a follow key to the units of a release and of the
// releases that continue it, or in a group to those of all roles.
type RingHolders struct {
	Identity attest.Digest // of the release, or of the group
	Role     string        // in a group, of a strict key
	Follow   bool
}

// RingCut returns the policy head after the last step that cut off a unit which may have the
// keys; zero before the first such step.
func RingCut(p policy.Approved, of RingHolders) attest.Digest {
	if !of.Follow {
		return p.LastCut(of.Identity, of.Role)
	}
	own, heirs := p.LastCut(of.Identity, ""), p.LastCutOfHeirs(of.Identity)
	i, _ := p.Index(own)
	if j, _ := p.Index(heirs); j > i {
		return heirs
	}
	return own
}

// RingCutSince reports whether a policy has a step after a head that cut off a unit which may
// have the keys: that unit can read everything sealed under them since. A head that the policy
// does not know is newer than the policy.
func RingCutSince(p policy.Approved, of RingHolders, head attest.Digest) bool {
	since, known := p.Index(head)
	cut, _ := p.Index(RingCut(p, of))
	return known && cut > since
}

// Ring is the ring keys of a unit.
type Ring struct {
	Strict    RingKeys // for sessions pinned to code
	Follow    RingKeys // for sessions opened by task name
	Inherited Inherited
}

// Inherited are the follow keys of the release that a release continues. They only open
// sessions. The zero Inherited has no keys.
type Inherited struct {
	Identity attest.Digest // of the predecessor
	Keys     RingKeys
}
