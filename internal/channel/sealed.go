package channel

import (
	"bytes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ring is one ring key as a host holds it.
type ring struct {
	key      *identity.RingKey
	identity attest.Digest // whose units seal under it
	pin      []byte        // of the sessions under it

	mu      sync.RWMutex // guards all below
	seals   map[wire.UnitID]*sealKey
	oneOffs [len(kems)]hpke.PrivateKey // of the table of KEMs; nil until needed
}

// sealKey is what one unit seals with under one ring key.
type sealKey struct {
	aead  cipher.AEAD
	nonce []byte // HMAC key of nonces
	fresh bool   // not kept yet
}

// derive is the seal key of a unit. It is kept once something was opened or
// sealed with it, so that strangers' unit ids take no memory.
func (r *ring) derive(unit wire.UnitID) (*sealKey, error) {
	r.mu.RLock()
	k := r.seals[unit]
	r.mu.RUnlock()
	if k != nil {
		return k, nil
	}
	id := r.key.ID()
	b, err := r.key.Derive(64, wire.LabelSealKey, id[:], unit[:])
	if err != nil {
		return nil, err
	}
	k = &sealKey{nonce: b[32:], fresh: true}
	wire.Secretly(func() { k.aead, err = newAEAD(b[:32]) })
	clear(b[:32])
	return k, err
}

func (r *ring) keep(unit wire.UnitID, k *sealKey) {
	if k.fresh {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seals[unit] = &sealKey{aead: k.aead, nonce: k.nonce}
	}
}

// erase forgets the ring key and all that was derived from it.
func (r *ring) erase() {
	r.key.Erase()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, k := range r.seals {
		clear(k.nonce)
	}
	r.seals, r.oneOffs = map[wire.UnitID]*sealKey{}, [len(kems)]hpke.PrivateKey{}
}

// bound is what a sealed session or tombstone says in the clear, authenticated
// as associated data.
type bound struct {
	identity attest.Digest
	ring     identity.RingID
	session  wire.SessionID
	expiry   uint64 // Unix seconds
	sealer   wire.UnitID
}

func (b bound) bytes(label wire.Label) []byte {
	return wire.Frame(label, []byte{suite}, b.identity[:], b.ring[:], b.session[:], wire.Uint64(b.expiry), b.sealer[:])
}

// parseBound is the inverse of bytes.
func parseBound(label wire.Label, raw []byte) (bound, error) {
	var f [6][]byte
	if err := wire.UnframeInto(f[:], label, raw); err != nil {
		return bound{}, err
	}
	if len(f[0]) != 1 || f[0][0] != suite || len(f[1]) != 32 || len(f[2]) != 16 || len(f[3]) != 24 || len(f[4]) != 8 || len(f[5]) != 16 {
		return bound{}, wire.Refuse(wire.Malformed, string(label), "another suite or size", "suite 1")
	}
	return bound{
		identity: attest.Digest(f[1]), ring: identity.RingID(f[2]), session: wire.SessionID(f[3]),
		expiry: binary.BigEndian.Uint64(f[4]), sealer: wire.UnitID(f[5]),
	}, nil
}

// kindOfSealed are the labels of what is sealed under a ring.
type kindOfSealed struct{ whole, bound wire.Label }

var (
	sealedSession   = kindOfSealed{wire.LabelSealedSession, wire.LabelSealed}
	sealedTombstone = kindOfSealed{wire.LabelTombstone, wire.LabelTombstoneBound}
)

// seal is Frame(whole, AD, nonce, ciphertext). The nonce is a MAC of what is
// sealed, so that the same bytes are sealed to the same bytes and others never
// under the same nonce.
func (r *ring) seal(kind kindOfSealed, b bound, plaintext []byte) ([]byte, error) {
	k, err := r.derive(b.sealer)
	if err != nil {
		return nil, err
	}
	ad := b.bytes(kind.bound)
	mac := hmac.New(sha256.New, k.nonce)
	mac.Write(ad)
	mac.Write(plaintext)
	nonce := mac.Sum(nil)[:12]
	sealed := wire.Frame(kind.whole, ad, nonce, k.aead.Seal(nil, nonce, plaintext, ad))
	r.keep(b.sealer, k)
	return sealed, nil
}

// unverified is a sealed session or tombstone taken apart.
type unverified struct {
	bound
	ad, nonce, ciphertext []byte
}

func unverifiedSealed(kind kindOfSealed, raw []byte) (unverified, error) {
	if len(raw) > maxTicket {
		return unverified{}, wire.Refuse(wire.TooLarge, string(kind.whole)+": size in bytes", len(raw), maxTicket)
	}
	var f [3][]byte
	if err := wire.UnframeInto(f[:], kind.whole, raw); err != nil {
		return unverified{}, err
	}
	if len(f[1]) != 12 {
		return unverified{}, wire.Refuse(wire.Malformed, string(kind.whole)+": size of the nonce", len(f[1]), 12)
	}
	b, err := parseBound(kind.bound, f[0])
	return unverified{bound: b, ad: f[0], nonce: f[1], ciphertext: f[2]}, err
}

// open decrypts what was sealed into dst.
func (r *ring) open(u unverified, dst []byte) ([]byte, error) {
	k, err := r.derive(u.sealer)
	if err != nil {
		return nil, err
	}
	plaintext, err := k.aead.Open(dst, u.nonce, u.ciphertext, u.ad)
	if err != nil {
		return nil, wire.Refuse(wire.BadSignature, "sealed session", "bytes that were changed", "what a unit of the cluster sealed")
	}
	r.keep(u.sealer, k)
	return plaintext, nil
}

// sealedBody is Frame("cohort sealed session body v1", secret, pin, policy head,
// opening unit).
func sealedBody(s *session, pin []byte) []byte {
	return wire.Frame(wire.LabelSealedBody, s.secret[:], pin, s.head[:], s.opener[:])
}

// openBody fills in a session from the plaintext of a sealed one.
func openBody(s *session, plaintext, pin []byte) error {
	var f [4][]byte
	if err := wire.UnframeInto(f[:], wire.LabelSealedBody, plaintext); err != nil {
		return err
	}
	if len(f[0]) != secretSize || len(f[2]) != len(s.head) || len(f[3]) != len(s.opener) {
		return wire.Refuse(wire.Malformed, "sealed session: sizes", "others", "32, 32 and 16 bytes")
	}
	if !bytes.Equal(f[1], pin) {
		return wire.Refuse(wire.WrongIdentity, "sealed session: pin", "another", "one of sessions under this ring key")
	}
	copy(s.secret[:], f[0])
	copy(s.head[:], f[2])
	copy(s.opener[:], f[3])
	return nil
}

// alive refuses what has ended, and what would be kept for longer than a session
// or its ring key lives.
func (b bound) alive(r *ring, at time.Time) error {
	now, end := uint64(at.Unix()), uint64(r.key.End().Unix())
	if b.expiry <= now {
		return wire.Refuse(wire.SessionOver, "sealed session: expiry", b.expiry, fmt.Sprint("after ", now))
	}
	if b.expiry > end || b.expiry > now+maxSession+clockMargin {
		return wire.Refuse(wire.Expired, "sealed session: expiry", b.expiry, fmt.Sprint("within an hour and the ring key's end ", end))
	}
	return nil
}
