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

// RingLifetime returns how long a ring key is current, for a lifetime of leaf certificates.
// After that the key can open sessions for the same time again.
func RingLifetime(leaf time.Duration) time.Duration { return min(MaxRingLifetime, 2*leaf) }

// RingID identifies a ring key: the first 16 bytes of H("cohort ring id v1", key).
type RingID [16]byte

// String returns the id as 32 lower-case hexadecimal digits.
func (r RingID) String() string { return hex.EncodeToString(r[:]) }

// RingKey encrypts sessions between units of one identity: 32 random bytes. It is never
// derived from the root secret and never stored. It prints as "secret" in every format and
// cannot be marshalled. It is safe for concurrent use.
type RingKey struct {
	id  RingID
	end time.Time

	mu     sync.RWMutex    // guards reveal against Erase
	reveal func() [32]byte // nil after Erase
	erase  func()
}

// NewRingKey returns a random ring key that opens sessions until end. Only an authority calls it.
func NewRingKey(end time.Time) *RingKey {
	var b [32]byte
	wire.Secretly(func() { rand.Read(b[:]) }) // never returns an error: it ends the program instead
	defer clear(b[:])
	return newRingKey(b[:], end)
}

// OpenRingKey makes a ring key from a copy of its bytes in a certificate report: 32 bytes, not
// all zero. It refuses any other bytes with "malformed".
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

// ID returns the id of the key.
func (k *RingKey) ID() RingID { return k.id }

// Expires returns the time until which the key opens sessions.
func (k *RingKey) Expires() time.Time { return k.end }

// Until returns a copy of the key that opens sessions until end.
func (k *RingKey) Until(end time.Time) *RingKey {
	b := k.Expose()
	defer clear(b)
	return newRingKey(b, end)
}

// Expose returns a copy of the 32 bytes, for a certificate report. After Erase it returns zeros.
func (k *RingKey) Expose() []byte {
	k.mu.RLock()
	defer k.mu.RUnlock()
	b := make([]byte, 32)
	if k.reveal != nil {
		wire.Secretly(func() { *(*[32]byte)(b) = k.reveal() })
	}
	return b
}

// Derive derives size bytes with HKDF-SHA256 from the key, without salt, and with the framing of
// the fields under label as info. After Erase it refuses with "ring".
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

// Erase overwrites the key. Afterwards the key neither seals nor opens sessions.
func (k *RingKey) Erase() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.reveal != nil {
		k.erase()
		k.reveal, k.erase = nil, nil
	}
}

// Format prints "secret" for every verb.
func (k *RingKey) Format(f fmt.State, _ rune) { io.WriteString(f, "secret") }

// LogValue logs "secret".
func (k *RingKey) LogValue() slog.Value { return slog.StringValue("secret") }

// MarshalText returns an error, so that JSON and every other textual encoding refuse the key.
func (k *RingKey) MarshalText() ([]byte, error) {
	return nil, errors.New("marshalling a ring key: it is written to certificate reports only")
}

// RingKeys contains the ring keys for one kind of session. A unit seals sessions under Current
// and opens sessions with all three keys. Previous is nil if no session under it can still be
// open. Without Current a unit seals no session.
type RingKeys struct {
	Previous, Current, Next *RingKey
}

// NewRingKeys returns random keys Current and Next. Current is current from now on.
func NewRingKeys(now time.Time, lifetime time.Duration) RingKeys {
	return RingKeys{Current: NewRingKey(now.Add(2 * lifetime)), Next: NewRingKey(now.Add(3 * lifetime))}
}

// Rotate makes Next the current key and adds a new random Next. The former current key becomes
// Previous and opens sessions for one more lifetime.
func (k RingKeys) Rotate(now time.Time, lifetime time.Duration) RingKeys {
	return RingKeys{
		Previous: k.Current.Until(now.Add(lifetime)),
		Current:  k.Next.Until(now.Add(2 * lifetime)),
		Next:     NewRingKey(now.Add(3 * lifetime)),
	}
}

// WithoutExpired returns k without Previous if that key has expired.
func (k RingKeys) WithoutExpired(now time.Time) RingKeys {
	if k.Previous != nil && !now.Before(k.Previous.end) {
		k.Previous = nil
	}
	return k
}

// Keys returns the keys that are not nil, Current first.
func (k RingKeys) Keys() []*RingKey {
	var list []*RingKey
	for _, key := range []*RingKey{k.Current, k.Previous, k.Next} {
		if key != nil {
			list = append(list, key)
		}
	}
	return list
}

// RingHolders identifies the units that have a ring key. A strict key is for the units of one
// release or, in a group, of one role. A follow key is for the units of a release and of the
// releases that continue it or, in a group, for the units of all roles.
type RingHolders struct {
	Identity attest.Digest // of the release, or of the group
	Role     string        // in a group, for a strict key only
	Follow   bool
}

// RingCut returns the policy head after the last step that cut off a unit that may have the
// keys, or zero before the first such step.
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

// RingCutSince reports whether a policy step after head cut off a unit that may have the keys.
// Such a unit can read everything that was sealed under them since. A head that the policy does
// not know is newer than the policy; then RingCutSince returns false.
func RingCutSince(p policy.Approved, of RingHolders, head attest.Digest) bool {
	since, known := p.Index(head)
	cut, _ := p.Index(RingCut(p, of))
	return known && cut > since
}

// Ring contains all ring keys of a unit.
type Ring struct {
	Strict    RingKeys // for sessions that pin a release or a role
	Follow    RingKeys // for sessions that pin a task by name, or a whole group
	Inherited Inherited
}

// Inherited contains the follow keys of the predecessor: the release that the unit's release
// continues. A unit only opens sessions with them. The zero Inherited contains no keys.
type Inherited struct {
	Identity attest.Digest // of the predecessor
	Keys     RingKeys
}
