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

// Session is the client's side of a trusted channel. Only [ClientHandshake.Finish] makes
// one. It is safe for concurrent use.
type Session struct {
	id       wire.SessionID
	peer     identity.Peer
	alone    bool                 // only its opener has it
	holders  identity.RingHolders // the units that may have it, unless alone
	evidence attest.Result
	head     attest.Digest
	expires  time.Time
	unitTime time.Time // of the opener, when it opened the session
	wants    SessionOptions
	ticket   []byte
	verdict  atomic.Pointer[verdict] // by the latest policy
	sentHead atomic.Pointer[byte]    // where the proved policy head begins that a request in it carried last

	mu     sync.Mutex       // guards all below
	secret [secretSize]byte // zeros once closed
	number uint64           // of the newest request
	keys   *keys            // of secret, once needed
	closed bool
}

// ID returns the id of the session.
func (s *Session) ID() wire.SessionID { return s.id }

// OpenedBy returns the unit that opened the session.
func (s *Session) OpenedBy() identity.Peer { return s.peer }

// Evidence returns the result of appraising fresh evidence, which is zero unless that was
// wanted.
func (s *Session) Evidence() attest.Result { return s.evidence }

// PolicyHead returns the policy head of the unit when it opened the session.
func (s *Session) PolicyHead() attest.Digest { return s.head }

// Alone reports whether only the unit that opened the session has it: the unit knew a
// cut, and had no certificate report since.
func (s *Session) Alone() bool { return s.alone }

// CutOff refuses, with "cut-off" or the reason of the group's policy, a session whose
// opener a policy cuts off, and one that a unit which was cut off since may read: it
// is sealed under ring keys of that unit. From then on any party may have made its
// responses, whatever unit they name. CutOff is fast while the policy is the same.
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

// OpenedAt returns when the session was opened, by the clock of its opener.
func (s *Session) OpenedAt() time.Time { return s.unitTime }

// Unsent reports whether a proved policy head is another than the one that the newest
// request of the session carried, and notes that the next one carries it.
func (s *Session) Unsent(head []byte) bool {
	if s.sentHead.Load() == headStart(head) {
		return false
	}
	s.sentHead.Store(headStart(head))
	return true
}

// headStart identifies a head by where it begins in memory.
func headStart(head []byte) *byte {
	if len(head) == 0 {
		return nil
	}
	return &head[0]
}

// Expires returns when every unit forgets the session.
func (s *Session) Expires() time.Time { return s.expires }

// Ticket returns the sealed session, with which other units of the cluster can open it.
// Only they can read it. It is empty if the session is [Session.Alone].
func (s *Session) Ticket() []byte { return s.ticket }

// Close erases the secret. Responses that have not begun fail with [ErrClosed].
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

// responseKey returns the key of a response to a request with this header. Closing is
// confirmed under the close key.
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
	key  [secretSize]byte // zeros but while one is derived
}

func newKeys(secret *[secretSize]byte) *keys {
	k := &keys{}
	wire.Secretly(func() { k.mac = hmac.New(sha256.New, secret[:]) })
	return k
}

// block is the number of HKDF-Expand's only block.
var block = []byte{1}

// closeKey derives the key that a unit keeps of a closed session: it opens no message of
// the session, and confirms that the secret is erased.
func closeKey(secret *[secretSize]byte) (key [secretSize]byte) {
	wire.Secretly(func() {
		b, err := hkdf.Expand(sha256.New, secret[:], string(wire.Frame(wire.LabelCloseKey)), secretSize)
		if err != nil {
			panic("channel: " + err.Error()) // only for sizes that HKDF does not have
		}
		copy(key[:], b)
		clear(b)
	})
	return key
}

// message returns the AES-256-GCM cipher of one message in one direction: HKDF-Expand of
// 32 bytes, which is one block, HMAC(secret, info ‖ 1).
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
