package channel

import (
	"bytes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ring is a ring key of a host with its use. It is immutable.
type ring struct {
	key      *identity.RingKey
	identity attest.Digest // identity, or role, of the units that seal under the key
	pin      []byte        // pin of the sessions under the key
	holders  identity.RingHolders
	since    attest.Digest // policy head of the first certificate report with the key
	*derived
}

// derived contains the keys derived from a ring key. All credentials with the ring key share
// one derived, so that erasing waits for every use.
type derived struct {
	mu      sync.RWMutex // guards all below
	erased  bool         // if set, no key is cached any more
	seals   map[wire.UnitID]*sealKey
	oneOffs [len(ohttp.KEMs)]hpke.PrivateKey // one per KEM; nil until needed
}

// sealKey contains the keys of one sealing unit under one ring key.
type sealKey struct {
	aead  cipher.AEAD
	nonce []byte // HMAC key for nonces
}

// withSealKey calls f with the seal key of a unit. [ring.erase] does not clear the key while f
// runs. withSealKey caches the key only after f succeeds, so that invented unit ids use no memory.
func (r *ring) withSealKey(unit wire.UnitID, f func(*sealKey) error) error {
	if known, err := r.withCachedKey(unit, f); known {
		return err
	}
	k, err := r.deriveSealKey(unit)
	if err != nil {
		return err
	}
	if err := f(k); err != nil {
		clear(k.nonce)
		return err
	}
	r.cacheKey(unit, k)
	return nil
}

// withCachedKey calls f with the seal key of a unit, if it is cached.
func (r *ring) withCachedKey(unit wire.UnitID, f func(*sealKey) error) (known bool, err error) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	k := r.seals[unit]
	if k == nil {
		return false, nil
	}
	return true, f(k)
}

// deriveSealKey derives the seal key of a unit.
func (r *ring) deriveSealKey(unit wire.UnitID) (*sealKey, error) {
	id := r.key.ID()
	b, err := r.key.Derive(64, wire.LabelSealKey, id[:], unit[:])
	if err != nil {
		return nil, err
	}
	k := &sealKey{nonce: b[32:]}
	wire.Secretly(func() { k.aead, err = newAEAD(b[:32]) })
	clear(b[:32])
	return k, err
}

// cacheKey caches a seal key, unless the ring was erased meanwhile or another goroutine has
// cached the key already.
func (r *ring) cacheKey(unit wire.UnitID, k *sealKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.erased || r.seals[unit] != nil {
		clear(k.nonce)
		return
	}
	r.seals[unit] = k
}

// erase erases the ring key and all keys derived from it.
func (r *ring) erase() {
	r.key.Erase()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.seals {
		clear(k.nonce)
	}
	r.seals, r.oneOffs, r.erased = nil, [len(ohttp.KEMs)]hpke.PrivateKey{}, true
}

// header returns the header of a sealed session or tombstone that a unit seals under the ring.
func (r *ring) header(s *session, sealer wire.UnitID) envelope.Header {
	return envelope.Header{For: r.identity, Ring: r.key.ID(), Session: s.id, Expiry: s.expiry, Sealer: sealer}
}

// sealMessage seals a session or tombstone. The nonce is a MAC over header and plaintext. So
// equal plaintexts seal to equal bytes, and different plaintexts do not share a nonce.
func (r *ring) sealMessage(kind envelope.Kind, h envelope.Header, plaintext []byte) (sealed []byte, err error) {
	ad := h.Encode(kind)
	err = r.withSealKey(h.Sealer, func(k *sealKey) error {
		mac := hmac.New(sha256.New, k.nonce)
		mac.Write(ad)
		mac.Write(plaintext)
		nonce := mac.Sum(nil)[:12]
		sealed = envelope.Sealed{AD: ad, Nonce: nonce, Ciphertext: k.aead.Seal(nil, nonce, plaintext, ad)}.Encode(kind)
		return nil
	})
	return sealed, err
}

// openSealed decrypts a sealed session or tombstone and appends the plaintext to dst.
func (r *ring) openSealed(u envelope.Sealed, dst []byte) (plaintext []byte, err error) {
	err = r.withSealKey(u.Sealer, func(k *sealKey) error {
		if plaintext, err = k.aead.Open(dst, u.Nonce, u.Ciphertext, u.AD); err != nil {
			return wire.Refuse(wire.BadSignature, "sealed session", fmt.Sprint(len(u.Ciphertext), " bytes that do not decrypt"), "a message that a unit of the cluster sealed")
		}
		return nil
	})
	return plaintext, err
}

// sealedBody returns Frame("cohort sealed session body v1", secret, pin, policy head, opening
// unit).
func sealedBody(s *session, pin []byte) []byte {
	return wire.Frame(wire.LabelSealedBody, s.secret[:], pin, s.head[:], s.opener[:])
}

// openBody fills in a session from the plaintext of a sealed session.
func openBody(s *session, plaintext, pin []byte) error {
	var f [4][]byte
	if err := wire.UnframeInto(f[:], wire.LabelSealedBody, plaintext); err != nil {
		return err
	}
	if len(f[0]) != secretSize || len(f[2]) != len(s.head) || len(f[3]) != len(s.opener) {
		return wire.Refuse(wire.Malformed, "sealed session: sizes", fmt.Sprintf("%d, %d and %d bytes", len(f[0]), len(f[2]), len(f[3])), "32, 32 and 16 bytes")
	}
	if !bytes.Equal(f[1], pin) {
		return wire.Refuse(wire.WrongIdentity, "sealed session: pin", fmt.Sprintf("%x", f[1]), fmt.Sprintf("%x, of sessions under this ring key", pin))
	}
	copy(s.secret[:], f[0])
	copy(s.head[:], f[2])
	copy(s.opener[:], f[3])
	return nil
}

// checkExpiry refuses a sealed session or tombstone whose session has ended, or whose expiry is
// after the end of the ring key or after the maximum lifetime of a session.
func (r *ring) checkExpiry(u envelope.Header, at time.Time) error {
	now, end := uint64(at.Unix()), uint64(r.key.Expires().Unix())
	if u.Expiry <= now {
		return wire.Refuse(wire.SessionOver, "sealed session: expiry", u.Expiry, fmt.Sprint("after ", now))
	}
	if u.Expiry > end || u.Expiry > now+unitauth.MaxSession+unitauth.ClockMargin {
		return wire.Refuse(wire.Expired, "sealed session: expiry", u.Expiry, fmt.Sprint("within an hour and the ring key's end ", end))
	}
	return nil
}
