package channel

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
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
	lengthSize   = 4
	tagSize      = 16
	finalBit     = 1 << 31
)

// place says where in its message a chunk stands.
type place uint32

const (
	inner place = 0
	final place = finalBit
)

// counter is the nonce of the next chunk.
type counter struct{ nonce [12]byte }

// step gives the nonce and moves on. A message of 2^64 chunks does not exist.
func (c *counter) step() {
	binary.BigEndian.PutUint64(c.nonce[4:], binary.BigEndian.Uint64(c.nonce[4:])+1)
}

// ChunkPool lends buffers for the chunks of messages. A nil pool makes them.
type ChunkPool struct{ lent sync.Pool }

// chunkBuffer is one of them. It holds zeros when nobody has it.
type chunkBuffer struct {
	b    []byte
	used int // bytes that may not be zeros
}

// grow gives size bytes, which are zeros where they are more than ever before.
// What one message needed the next does.
func (c *chunkBuffer) grow(size int) []byte {
	if len(c.b) < size {
		c.b, c.used = make([]byte, size), 0
	}
	c.used = max(c.used, size)
	return c.b[:size:size]
}

func (p *ChunkPool) get() *chunkBuffer {
	if p != nil {
		if c, ok := p.lent.Get().(*chunkBuffer); ok {
			return c
		}
	}
	return &chunkBuffer{}
}

// put takes a buffer back that nobody uses any more, and erases it; nil is none.
func (p *ChunkPool) put(c *chunkBuffer) {
	if p == nil || c == nil {
		return
	}
	clear(c.b[:c.used])
	c.used = 0
	p.lent.Put(c)
}

// sealer encrypts the chunks of one message. Its key encrypts no other.
type sealer struct {
	aead cipher.AEAD
	counter
}

// seal encrypts b in place: its first 4 bytes are room for the length, the rest
// is the plaintext. It gives the whole chunk, for which b should have room.
func (s *sealer) seal(b []byte, at place) []byte {
	binary.BigEndian.PutUint32(b, uint32(len(b)-lengthSize+tagSize)|uint32(at))
	b = s.aead.Seal(b[:lengthSize], s.nonce[:], b[lengthSize:], b[:lengthSize])
	s.step()
	return b
}

// opener decrypts the chunks of one message. It reads no further than the chunk
// it gives.
type opener struct {
	r    io.Reader
	aead cipher.AEAD
	counter
	length [lengthSize]byte
	pool   *ChunkPool   // that buf is of; nil: of none
	buf    *chunkBuffer // nil before the first chunk, and once released
	ended  bool         // the final chunk was given
	over   bool         // and nothing follows it
}

// done reports whether next gave the final chunk.
func (o *opener) done() bool { return o.ended }

// release gives the buffer back; no plaintext is in use any more.
func (o *opener) release() {
	o.pool.put(o.buf)
	o.buf = nil
}

// next is the plaintext of the next chunk, valid until the call after, and where
// it stands. After the final one it is io.EOF, if nothing follows. It refuses
// with "truncated" an end before the final chunk and with "signature" a chunk
// that does not open; read errors are the reader's, with "truncated".
func (o *opener) next() ([]byte, place, error) {
	if o.ended {
		return nil, final, o.end()
	}
	if _, err := io.ReadFull(o.r, o.length[:]); err != nil {
		return nil, inner, cutOff(err)
	}
	length := binary.BigEndian.Uint32(o.length[:])
	at, size := place(length&finalBit), int(length&^finalBit)
	if size > MaxPlaintext+tagSize || size < tagSize || at == inner && size == tagSize {
		return nil, inner, wire.Refuse(wire.BadSignature, "chunk: size in bytes", size, "16 to 65552, more than 16 if not final")
	}
	if o.buf == nil {
		o.buf = o.pool.get()
	}
	b := o.buf.grow(size)
	if _, err := io.ReadFull(o.r, b); err != nil {
		return nil, inner, cutOff(err)
	}
	plaintext, err := o.aead.Open(b[:0], o.nonce[:], b, o.length[:])
	if err != nil {
		return nil, inner, wire.Refuse(wire.BadSignature, "chunk", "bytes that were changed", "what the other side sent")
	}
	o.step()
	o.ended = at == final
	return plaintext, at, nil
}

// end is io.EOF unless something follows the final chunk.
func (o *opener) end() error {
	if o.over {
		return io.EOF
	}
	switch n, err := io.ReadFull(o.r, o.length[:1]); {
	case n > 0:
		return wire.Refuse(wire.Malformed, "stream: after the final chunk", "more bytes", "its end")
	case err != io.EOF:
		return cutOff(err)
	}
	o.over = true
	return io.EOF
}

// cutOff is the error of a stream that ended too soon.
func cutOff(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return ErrTruncated
	}
	return errors.Join(ErrTruncated, err)
}
