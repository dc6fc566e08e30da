package channel

import (
	"crypto/cipher"
	"io"
)

// chunks are the chunks of one message, decrypted.
type chunks interface {
	// next is the plaintext of the next chunk, valid until the call after, and
	// where it stands; after the final one io.EOF.
	next() ([]byte, place, error)
	// done reports whether next gave the final chunk.
	done() bool
	// release ends the use of plaintext.
	release()
}

// newSource reads chunks from r into a buffer of a pool.
func newSource(r io.Reader, aead cipher.AEAD, pool *ChunkPool) *source {
	both := &struct { // in one piece of memory
		source
		opener
	}{opener: opener{r: r, aead: aead, pool: pool}}
	both.source.opener = &both.opener
	return &both.source
}

// source gives the plaintext of a message chunk by chunk.
type source struct {
	opener  chunks
	stands  func() error // refuses what comes from now on; nil: it is all taken
	copy    io.Writer    // takes all plaintext that a receipt is about; nil: none
	receipt bool         // the final chunk, if not the only one, is a receipt
	begun   bool
	proof   []byte // that receipt
}

// Next is the plaintext of the next chunk, and io.EOF at the message's end.
func (s *source) Next() ([]byte, error) {
	b, at, err := s.opener.next()
	if err == nil && s.stands != nil {
		err = s.stands()
	}
	if err != nil {
		return nil, err
	}
	if s.receipt && at == final && s.begun {
		s.proof = append([]byte(nil), b...)
		return s.Next()
	}
	s.begun = true
	if s.copy != nil {
		s.copy.Write(b) // a hash or a buffer: never an error
	}
	return b, nil
}

// Done reports whether the final chunk was read.
func (s *source) Done() bool { return s.opener.done() }

// Release ends the use of plaintext that Next returned.
func (s *source) Release() { s.opener.release() }
