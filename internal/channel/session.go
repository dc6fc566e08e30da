package channel

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"hash"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Session is the client's side of a session. Only [ClientHandshake.Finish] makes a Session. It
// is safe for concurrent use.
type Session struct {
	id       wire.SessionID
	peer     identity.Peer
	alone    bool                 // only the unit that opened the session has it
	holders  identity.RingHolders // units that may have the session, unless alone
	evidence attest.Result
	head     attest.Digest
	expires  time.Time
	unitTime time.Time // on the opener's clock, when it opened the session
	wants    SessionOptions
	ticket   []byte
	verdict  atomic.Pointer[verdict] // under the latest policy
	sentHead atomic.Pointer[byte]    // address of the proved policy head that a request carried last

	mu     sync.Mutex       // guards all below
	secret [secretSize]byte // zeros after Close
	number uint64           // number of the newest request
	keys   *keys            // derived from secret; nil until needed
	closed bool
}

// ID returns the id of the session.
func (s *Session) ID() wire.SessionID { return s.id }

// OpenedBy returns the unit that opened the session.
func (s *Session) OpenedBy() identity.Peer { return s.peer }

// Evidence returns the appraisal result of fresh evidence. It is zero unless the client wanted
// fresh evidence.
func (s *Session) Evidence() attest.Result { return s.evidence }

// PolicyHead returns the policy head that the unit had reached when it opened the session.
func (s *Session) PolicyHead() attest.Digest { return s.head }

// Alone reports whether only the unit that opened the session has it. That is so if the unit
// knew a cut-off and had not received a certificate report since.
func (s *Session) Alone() bool { return s.alone }

// CutOff refuses, with "cut-off" or the reason of the group's policy, a session whose opener the
// policy cuts off. It also refuses, with "cut-off", a session under a ring key of a unit that the
// policy has since cut off: that unit can read the session, and could forge responses in the name
// of any unit. CutOff is fast while the policy is the same.
func (s *Session) CutOff(p policy.Approved, at time.Time) error {
	head := p.PolicyHead()
	if v := s.verdict.Load(); v != nil && v.head == head {
		return v.err
	}
	v := &verdict{head: head, err: p.CutOff(s.peer.Facts(), at)}
	if v.err == nil && !s.alone && identity.RingCutSince(p, s.holders, s.head) {
		v.err = wire.Refuse(wire.CutOff, "session: cut of a unit that may read it", "after policy head "+s.head.String(), "a session since the cut")
	}
	s.verdict.Store(v)
	return v.err
}

// verdict is the result of [Session.CutOff] under a policy.
type verdict struct {
	head attest.Digest
	err  error
}

// OpenedAt returns when the session was opened, on the clock of the unit that opened it.
func (s *Session) OpenedAt() time.Time { return s.unitTime }

// Unsent reports whether a proved policy head differs from the head that a request of the
// session carried last. It records that the next request carries this head.
func (s *Session) Unsent(head []byte) bool {
	if s.sentHead.Load() == headStart(head) {
		return false
	}
	s.sentHead.Store(headStart(head))
	return true
}

// headStart returns the address of a head in memory, which identifies the head.
func headStart(head []byte) *byte {
	if len(head) == 0 {
		return nil
	}
	return &head[0]
}

// Expires returns the end of the session: then every unit removes it.
func (s *Session) Expires() time.Time { return s.expires }

// Ticket returns the sealed session. With it other units of the cluster can join the session;
// only they can read it. It is empty if [Session.Alone] is true.
func (s *Session) Ticket() []byte { return s.ticket }

// Close erases the secret. Opening a response afterwards fails with [ErrClosed].
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.secret[:])
	s.keys, s.closed = nil, true
}

// nextHeader returns the header of the next request. Its number is never used again.
func (s *Session) nextHeader(target wire.UnitID, notAfter time.Time, flags wire.Flags) (wire.Header, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return wire.Header{}, ErrClosed
	}
	s.number++
	return wire.Header{Session: s.id, Number: s.number, Target: target, NotAfter: notAfter, Flags: flags}, nil
}

// responseKey returns the key of the response to a request with this header. A unit confirms a
// request that closes the session under the close key.
func (s *Session) responseKey(header wire.Header, fields ...[]byte) (cipher.AEAD, error) {
	if header.Flags&wire.FlagClose == 0 {
		return s.messageKey(wire.LabelResponseKey, fields...)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	closing := closeKey(&s.secret)
	return newKeys(&closing).message(wire.LabelResponseKey, fields...)
}

// messageKey returns the key of one request or response.
func (s *Session) messageKey(label wire.Label, fields ...[]byte) (cipher.AEAD, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	if s.keys == nil {
		s.keys = newKeys(&s.secret)
	}
	return s.keys.message(label, fields...)
}

// keys derives the keys of messages from a session secret.
type keys struct {
	mac  hash.Hash
	info [128]byte        // room for the HKDF info
	key  [secretSize]byte // zeros except during a derivation
}

func newKeys(secret *[secretSize]byte) *keys {
	k := &keys{}
	wire.Secretly(func() { k.mac = hmac.New(sha256.New, secret[:]) })
	return k
}

// block is the counter byte of the first HKDF-Expand block, which is the only one used.
var block = []byte{1}

// closeKey derives the key that a unit keeps of a closed session. The key opens no earlier
// message of the session. A response under it confirms that the secret is erased.
func closeKey(secret *[secretSize]byte) (key [secretSize]byte) {
	wire.Secretly(func() {
		b, err := hkdf.Expand(sha256.New, secret[:], string(wire.Frame(wire.LabelCloseKey)), secretSize)
		if err != nil {
			panic("channel: " + err.Error()) // only for sizes that HKDF does not support
		}
		copy(key[:], b)
		clear(b)
	})
	return key
}

// message returns the AES-256-GCM cipher of one message in one direction. Its key is
// HKDF-Expand to 32 bytes; that is one block, HMAC(secret, info ‖ 1).
func (k *keys) message(label wire.Label, fields ...[]byte) (aead cipher.AEAD, err error) {
	info := wire.AppendFrame(k.info[:0], label, fields...)
	wire.Secretly(func() {
		k.mac.Reset()
		k.mac.Write(info)
		k.mac.Write(block)
		aead, err = newAEAD(k.mac.Sum(k.key[:0]))
		clear(k.key[:])
	})
	return aead, err
}

// newAEAD returns AES-256-GCM with a key.
func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
