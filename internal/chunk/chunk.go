// Package chunk encrypts messages chunk by chunk: requests and responses of the trusted
// channel, each under a key of its own. docs/spec/channel.md has the bytes.
//
// [Writer] seals and [Reader] opens the chunks of one message; [Plaintext] is the reader as
// package bhttp takes it. It trusts the key alone. It refuses a chunk that is changed,
// missing, repeated or in another place, a message that ends before its final chunk, and
// bytes after that one.
//
// Its files, from the ground up: chunk.go, pad.go, plaintext.go.
package chunk

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/cohort-tee/cohort/internal/wire"
)

// A message is cut into chunks: 4 bytes of length, big-endian, and that many
// bytes of AES-256-GCM ciphertext. The highest bit of the length marks the final
// chunk. The nonce is 4 zero bytes and the chunk's number from 0; the length is
// the associated data. So a chunk that is missing, changed, repeated or in
// another place does not open.
const (
	MaxPlaintext = 64 << 10 // in one chunk, in bytes
	LengthSize   = 4
	TagSize      = 16
	finalBit     = 1 << 31
)

// Flag marks the final chunk of a message.
type Flag uint32

// The flags, as they are in a chunk's length.
const (
	More  Flag = 0
	Final Flag = finalBit
)

// counter is the nonce of the next chunk.
type counter struct{ nonce [12]byte }

// increment makes the next nonce. No message has 2^64 chunks.
func (c *counter) increment() {
	binary.BigEndian.PutUint64(c.nonce[4:], binary.BigEndian.Uint64(c.nonce[4:])+1)
}

// Pool is a pool of buffers for the chunks of messages. A nil pool allocates them.
type Pool struct{ lent sync.Pool }

// Buffer is a buffer of a [Pool]. It contains zeros while it is in the pool.
type Buffer struct {
	b    []byte
	used int // bytes that may not be zeros
}

// Grow returns size bytes; those that were not used before are zeros. It allocates exactly
// size, because the next message of a buffer usually needs the same.
func (c *Buffer) Grow(size int) []byte {
	if len(c.b) < size {
		c.b, c.used = make([]byte, size), 0
	}
	c.used = max(c.used, size)
	return c.b[:size:size]
}

// Get returns a buffer of the pool, or a new one.
func (p *Pool) Get() *Buffer {
	if p != nil {
		if c, ok := p.lent.Get().(*Buffer); ok {
			return c
		}
	}
	return &Buffer{}
}

// Put erases a buffer that is no longer used and returns it to the pool; nil is ignored.
func (p *Pool) Put(c *Buffer) {
	if p == nil || c == nil {
		return
	}
	clear(c.b[:c.used])
	c.used = 0
	p.lent.Put(c)
}

// Writer encrypts the chunks of one message. Its key encrypts no other.
type Writer struct {
	aead cipher.AEAD
	counter
}

// NewWriter makes the writer of one message.
func NewWriter(aead cipher.AEAD) *Writer { return &Writer{aead: aead} }

// SealChunk encrypts b in place: its first 4 bytes are room for the length, the rest
// is the plaintext. It returns the whole chunk, for which b should have room.
func (s *Writer) SealChunk(b []byte, at Flag) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-LengthSize+TagSize)|uint32(at))
	b = s.aead.Seal(b[:LengthSize], s.nonce[:], b[LengthSize:], b[:LengthSize])
	s.increment()
	return b
}

// Reader decrypts the chunks of one message. It reads no further than the chunk
// it returns.
type Reader struct {
	r    io.Reader
	aead cipher.AEAD
	counter
	length [LengthSize]byte
	pool   *Pool   // of buf; nil: none
	buf    *Buffer // nil before the first chunk, and once released
	ended  bool    // the final chunk was returned
	over   bool    // and nothing follows it
}

// NewReader makes the reader of one message from r, with a buffer of a pool; nil: one of
// its own.
func NewReader(r io.Reader, aead cipher.AEAD, pool *Pool) *Reader {
	return &Reader{r: r, aead: aead, pool: pool}
}

// Done reports whether Next returned the final chunk.
func (o *Reader) Done() bool { return o.ended }

// Release returns the buffer to its pool; the plaintext is no longer valid.
func (o *Reader) Release() {
	o.pool.Put(o.buf)
	o.buf = nil
}

// Next returns the plaintext of the next chunk, valid until the next call, and its flag.
// After the final chunk its error is io.EOF, if nothing follows. It refuses
// with "truncated" an end before the final chunk and with "signature" a chunk
// that does not open; read errors are the reader's, with "truncated".
func (o *Reader) Next() ([]byte, Flag, error) {
	if o.ended {
		return nil, Final, o.checkEnd()
	}
	if _, err := io.ReadFull(o.r, o.length[:]); err != nil {
		return nil, More, TruncatedError(err)
	}
	length := binary.BigEndian.Uint32(o.length[:])
	at, size := Flag(length&finalBit), int(length&^finalBit)
	if size > MaxPlaintext+TagSize || size < TagSize || at == More && size == TagSize {
		return nil, More, wire.Refuse(wire.BadSignature, "chunk: size in bytes", size, "16 to 65552, more than 16 if not final")
	}
	if o.buf == nil {
		o.buf = o.pool.Get()
	}
	b := o.buf.Grow(size)
	if _, err := io.ReadFull(o.r, b); err != nil {
		return nil, More, TruncatedError(err)
	}
	plaintext, err := o.aead.Open(b[:0], o.nonce[:], b, o.length[:])
	if err != nil {
		return nil, More, wire.Refuse(wire.BadSignature, "chunk", fmt.Sprint(size, " bytes that do not decrypt"), "a chunk as the other side sent it")
	}
	o.increment()
	o.ended = at == Final
	return plaintext, at, nil
}

// checkEnd returns io.EOF unless something follows the final chunk.
func (o *Reader) checkEnd() error {
	if o.over {
		return io.EOF
	}
	switch n, err := io.ReadFull(o.r, o.length[:1]); {
	case n > 0:
		return wire.Refuse(wire.Malformed, "stream: after the final chunk", "more bytes", "the end of the stream")
	case err != io.EOF:
		return TruncatedError(err)
	}
	o.over = true
	return io.EOF
}

// TruncatedError returns the error of a stream that ended too early.
func TruncatedError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrTruncated
	}
	return errors.Join(ErrTruncated, err)
}

// ErrTruncated says that a stream ended before its final chunk.
var ErrTruncated = wire.Refuse(wire.Truncated, "stream", "an early end", "a final chunk")
