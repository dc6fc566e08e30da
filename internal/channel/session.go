package channel

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Session is the client's side of a trusted channel. Only [Opening.Finish] makes
// one. It is safe for concurrent use.
type Session struct {
	id       wire.SessionID
	peer     identity.Peer
	evidence attest.Result
	head     attest.Digest
	expires  time.Time
	wants    Wants
	ticket   []byte

	mu     sync.Mutex       // guards all below
	secret [secretSize]byte // zeros once closed
	number uint64           // of the newest request
	closed bool
}

// ID names the session.
func (s *Session) ID() wire.SessionID { return s.id }

// Peer is the unit that opened the session.
func (s *Session) Peer() identity.Peer { return s.peer }

// Evidence is the result of appraising fresh evidence; it is OK where that was
// wanted.
func (s *Session) Evidence() attest.Result { return s.evidence }

// Head is the policy head that the unit stood under.
func (s *Session) Head() attest.Digest { return s.head }

// Expires is when every unit forgets the session.
func (s *Session) Expires() time.Time { return s.expires }

// Ticket is the sealed session, which gives units that do not hold the session
// the chance to open it. Only they can read it.
func (s *Session) Ticket() []byte { return s.ticket }

// Close erases the secret. Answers that have not begun fail with [ErrClosed].
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.secret[:])
	s.closed = true
}

// take gives the header of the next request: its number is never given again.
func (s *Session) take(target wire.UnitID, notAfter time.Time, flags wire.Flags) (wire.Header, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return wire.Header{}, ErrClosed
	}
	s.number++
	return wire.Header{Session: s.id, Number: s.number, Target: target, NotAfter: notAfter, Flags: flags}, nil
}

// key is the key of one request or answer.
func (s *Session) key(label wire.Label, fields ...[]byte) (cipher.AEAD, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	return messageKey(&s.secret, label, fields...)
}

// messageKey is the AES-256-GCM key of one message in one direction.
func messageKey(secret *[secretSize]byte, label wire.Label, fields ...[]byte) (aead cipher.AEAD, err error) {
	wire.Secretly(func() {
		var key []byte
		if key, err = hkdf.Expand(sha256.New, secret[:], string(wire.Frame(label, fields...)), secretSize); err == nil {
			aead, err = newAEAD(key)
			clear(key)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("deriving %s: %w", label, err)
	}
	return aead, nil
}

// newAEAD is AES-256-GCM.
func newAEAD(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}
