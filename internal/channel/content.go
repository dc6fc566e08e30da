package channel

import (
	"crypto/cipher"
	"errors"
	"io"
	"net/http"

	"github.com/cohort-tee/cohort/internal/wire"
)

// maxTrailers bounds a trailer section in bytes.
const maxTrailers = 16 << 10

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
func newSource(r io.Reader, aead cipher.AEAD, pool *chunkPool) *source {
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
	copy    io.Writer // takes all plaintext that a receipt is about; nil: none
	receipt bool      // the final chunk, if not the only one, is a receipt
	begun   bool
	proof   []byte // that receipt
}

// next is the plaintext of the next chunk, and io.EOF at the message's end.
func (s *source) next() ([]byte, error) {
	b, at, err := s.opener.next()
	if err != nil {
		return nil, err
	}
	if s.receipt && at == final && s.begun {
		s.proof = append([]byte(nil), b...)
		return s.next()
	}
	s.begun = true
	if s.copy != nil {
		s.copy.Write(b) // a hash or a buffer: never an error
	}
	return b, nil
}

// content reads the content of a message, then its trailers, then its padding.
// It is an io.ReadCloser for the body of a request or response.
type content struct {
	source  *source
	buf     []byte // plaintext of the current chunk not read yet
	known   bool   // one length for all of the content
	left    uint64 // of the content, or of its current part
	trailer http.Header
	err     error
	after   func(error) error // judges the message's end or first error, once; nil: nobody does
	closer  io.Closer
}

// newContent reads the content whose head was parsed; rest is what followed the
// head in its chunk. Trailers go into trailer.
func newContent(s *source, h head, rest []byte) *content {
	c := &content{source: s, buf: rest, known: h.length != indeterminate, trailer: http.Header{}}
	if c.known {
		c.left = uint64(h.length)
	}
	return c
}

// Read gives content. It ends in io.EOF only when the whole message, its
// trailers and its padding were read and are in order.
func (c *content) Read(p []byte) (int, error) {
	if len(p) == 0 || c.err != nil {
		return 0, c.err
	}
	b, err := c.ready()
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	return n, c.took(n)
}

// WriteTo writes the content that is left from where it was decrypted, which
// spares a copy. It ends as Read does, where the end is no error.
func (c *content) WriteTo(w io.Writer) (written int64, err error) {
	for err = c.err; err == nil; {
		var b []byte
		if b, err = c.ready(); err != nil {
			break
		}
		n, failed := w.Write(b)
		written += int64(n)
		err = c.took(n)
		if failed != nil {
			return written, failed
		}
	}
	if err == io.EOF {
		err = nil
	}
	return written, err
}

// ready gives what is there of the content, at least one byte.
func (c *content) ready() ([]byte, error) {
	if err := c.part(); err != nil {
		return nil, c.end(err)
	}
	if len(c.buf) == 0 {
		if err := c.fill(); err != nil {
			if err == io.EOF {
				err = wire.Refuse(wire.Malformed, "binary http: content", "an early end", "all its bytes")
			}
			return nil, c.end(err)
		}
	}
	return c.buf[:min(uint64(len(c.buf)), c.left)], nil
}

// took moves on by n bytes of what was ready.
func (c *content) took(n int) error {
	c.buf, c.left = c.buf[n:], c.left-uint64(n)
	if c.known && c.left == 0 && c.source.opener.done() {
		return c.finish() // spares the caller another call
	}
	return nil
}

// part makes left more than 0, or gives io.EOF when the content has ended.
func (c *content) part() (err error) {
	if c.left > 0 {
		return nil
	}
	if !c.known {
		if c.left, err = c.integer(); err != nil || c.left > 0 {
			return err
		}
	}
	return c.finish()
}

// finish reads trailers and padding up to the message's end; it gives io.EOF or
// what is wrong.
func (c *content) finish() error {
	err := c.trailers()
	for err == nil {
		for _, b := range c.buf {
			if b != 0 {
				return c.end(wire.Refuse(wire.Malformed, "binary http: padding", b, 0))
			}
		}
		err = c.fill()
	}
	return c.end(err)
}

// end remembers how reading ended.
func (c *content) end(err error) error {
	if c.err == nil {
		c.err = err
		if err == io.EOF {
			c.buf = nil
			c.source.opener.release()
		}
		if c.after != nil {
			c.err = c.after(err)
		}
	}
	return c.err
}

// fill makes buf the next chunk.
func (c *content) fill() (err error) {
	c.buf, err = c.source.next()
	return err
}

// integer reads an integer that may lie across chunks. At the message's end it
// is 0, since trailing zeros may be left out.
func (c *content) integer() (uint64, error) {
	var b [8]byte
	for n := range b {
		for len(c.buf) == 0 {
			switch err := c.fill(); {
			case err == io.EOF && n == 0:
				return 0, nil
			case err == io.EOF:
				return 0, wire.Refuse(wire.Malformed, "binary http: integer", "a cut one", "all its bytes")
			case err != nil:
				return 0, err
			}
		}
		b[n], c.buf = c.buf[0], c.buf[1:]
		if n+1 == 1<<(b[0]>>6) {
			v, _, err := parseVarint(b[:n+1])
			return v, err
		}
	}
	panic("channel: an integer of more than 8 bytes")
}

// trailers reads the trailer section.
func (c *content) trailers() error {
	if c.known {
		size, err := c.integer()
		if err != nil || size == 0 {
			return err
		}
		b, err := c.take(size, nil)
		if err != nil {
			return err
		}
		p := &parser{rest: b, known: true}
		c.add(p.fields())
		return p.err
	}
	section, err := c.lines()
	if err != nil || len(section) == 0 {
		return err
	}
	p := &parser{rest: append(section, 0)}
	c.add(p.fields())
	return p.err
}

// add keeps what is in the map that the request or response has already.
func (c *content) add(fields http.Header) {
	for name, values := range fields {
		c.trailer[name] = values
	}
}

// lines reads field lines up to, and without, their terminator.
func (c *content) lines() ([]byte, error) {
	var section []byte
	for {
		for part := range 2 { // name and value
			size, err := c.integer()
			if err != nil || size == 0 && part == 0 {
				return section, err
			}
			if section, err = c.take(size, appendVarint(section, size)); err != nil {
				return nil, err
			}
		}
	}
}

// take reads size bytes behind b.
func (c *content) take(size uint64, b []byte) ([]byte, error) {
	if uint64(len(b))+size > maxTrailers {
		return nil, wire.Refuse(wire.TooLarge, "binary http: trailers: size in bytes", uint64(len(b))+size, maxTrailers)
	}
	for size > 0 {
		if len(c.buf) == 0 {
			if err := c.fill(); err == io.EOF {
				return nil, wire.Refuse(wire.Malformed, "binary http: trailers", "an early end", "all their bytes")
			} else if err != nil {
				return nil, err
			}
		}
		n := min(size, uint64(len(c.buf)))
		b = append(b, c.buf[:n]...)
		c.buf, size = c.buf[n:], size-n
	}
	return b, nil
}

// errBodyClosed is the error of reading a closed body.
var errBodyClosed = errors.New("reading a closed body")

// Close ends reading.
func (c *content) Close() error {
	c.end(errBodyClosed)
	if c.closer == nil {
		return nil
	}
	return c.closer.Close()
}
