package chunk

import (
	"crypto/cipher"
	"io"
)

// Chunks are the chunks of one message, decrypted.
type Chunks interface {
	// Next is the plaintext of the next chunk, valid until the call after, and
	// where it stands; after the final one io.EOF.
	Next() ([]byte, Flag, error)
	// Done reports whether Next gave the final chunk.
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

// Plaintext gives the plaintext of a message chunk by chunk.
type Plaintext struct {
	// Valid refuses what comes from now on; nil: never.
	Valid func() error
	// Copy takes all plaintext that a receipt is about; nil: none is taken.
	Copy io.Writer
	// EndsInReceipt says that the final chunk, if not the only one, is a receipt.
	EndsInReceipt bool

	opener Chunks
	begun  bool
	proof  []byte // that receipt
}

// Next is the plaintext of the next chunk, and io.EOF at the message's end.
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

// Receipt is the receipt that the final chunk held; nil: none.
func (s *Plaintext) Receipt() []byte { return s.proof }

// Release ends the use of plaintext that Next returned.
func (s *Plaintext) Release() { s.opener.Release() }
