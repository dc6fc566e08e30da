package chunk

import (
	"crypto/cipher"
	"io"
)

// Chunks are the chunks of one message, decrypted.
type Chunks interface {
	// Next returns the plaintext of the next chunk, valid until the next call, and its
	// flag; after the final chunk io.EOF.
	Next() ([]byte, Flag, error)
	// Done reports whether Next returned the final chunk.
	Done() bool
	// Release ends the use of plaintext.
	Release()
}

// Decrypted reads chunks that are decrypted already.
func Decrypted(c Chunks) *Plaintext { return &Plaintext{opener: c} }

// NewPlaintext reads chunks from r into a buffer of a pool.
func NewPlaintext(r io.Reader, aead cipher.AEAD, pool *Pool) *Plaintext {
	both := &struct { // in one piece of memory
		Plaintext
		Reader
	}{Reader: Reader{r: r, aead: aead, pool: pool}}
	both.Plaintext.opener = &both.Reader
	return &both.Plaintext
}

// Plaintext returns the plaintext of a message chunk by chunk.
type Plaintext struct {
	// Valid can refuse the rest of the message; nil: never.
	Valid func() error
	// Copy receives all plaintext that a receipt covers; nil: none.
	Copy io.Writer
	// EndsInReceipt is set if the final chunk, unless it is the only one, is a receipt.
	EndsInReceipt bool

	opener Chunks
	begun  bool
	proof  []byte // that receipt
}

// Next returns the plaintext of the next chunk, and io.EOF at the message's end.
func (s *Plaintext) Next() ([]byte, error) {
	b, at, err := s.opener.Next()
	if err == nil && s.Valid != nil {
		err = s.Valid()
	}
	if err != nil {
		return nil, err
	}
	if s.EndsInReceipt && at == Final && s.begun {
		s.proof = append([]byte(nil), b...)
		return s.Next()
	}
	s.begun = true
	if s.Copy != nil {
		s.Copy.Write(b) // a hash or a buffer: never an error
	}
	return b, nil
}

// Done reports whether the final chunk was read.
func (s *Plaintext) Done() bool { return s.opener.Done() }

// Receipt returns the receipt of the final chunk; nil: none.
func (s *Plaintext) Receipt() []byte { return s.proof }

// Release ends the use of plaintext that Next returned.
func (s *Plaintext) Release() { s.opener.Release() }
