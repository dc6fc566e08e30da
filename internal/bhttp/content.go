package bhttp

import (
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/cohort-tee/cohort/internal/wire"
)

// MaxTrailers bounds a trailer section in bytes.
const MaxTrailers = 16 << 10

// Chunks returns the plaintext of a message in pieces.
type Chunks interface {
	// Next returns the next piece, valid until the call after, and io.EOF at the
	// message's end.
	Next() ([]byte, error)
	// Done reports whether Next returned the last piece.
	Done() bool
	// Release ends the use of what Next returned.
	Release()
}

// Content reads the content of a message, then its trailers, then its padding. It is the body
// of a request or response.
type Content struct {
	// After, if set, is called once with the end of the content: io.EOF at the message's end,
	// or the first error. Read returns its result instead.
	After  func(error) error
	Closer io.Closer // closed by Close; nil: none

	chunks    Chunks
	buf       []byte // plaintext of the current chunk that is not read yet
	known     bool   // one length for all of the content
	remaining uint64 // of the content, or of its current part
	length    int64  // of all of the content; -1: not known before its end
	seen      int64  // of it, read so far
	trailer   http.Header
	err       error
}

// NewContent reads the content of the message whose head was parsed; rest is what followed the
// head in its chunk.
func NewContent(chunks Chunks, h Head, rest []byte) *Content {
	c := &Content{chunks: chunks, buf: rest, known: h.Length != Indeterminate, length: h.Length, trailer: http.Header{}}
	if c.known {
		c.remaining = uint64(h.Length)
	}
	return c
}

// Read reads content. It ends in io.EOF only once the whole message, trailers and padding
// included, was read and is in order.
func (c *Content) Read(p []byte) (int, error) {
	if len(p) == 0 || c.err != nil {
		return 0, c.err
	}
	b, err := c.ready()
	if err != nil {
		return 0, err
	}
	n := copy(p, b)
	return n, c.consume(n)
}

// WriteTo writes the content that is left from where it was decrypted, which
// spares a copy. It ends as Read does, where the end is no error.
func (c *Content) WriteTo(w io.Writer) (written int64, err error) {
	for err = c.err; err == nil; {
		var b []byte
		if b, err = c.ready(); err != nil {
			break
		}
		n, failed := w.Write(b)
		written += int64(n)
		err = c.consume(n)
		if failed != nil {
			return written, failed
		}
	}
	if err == io.EOF {
		err = nil
	}
	return written, err
}

// ready returns content that is there, at least one byte.
func (c *Content) ready() ([]byte, error) {
	if err := c.nextPart(); err != nil {
		return nil, c.setEnd(err)
	}
	if len(c.buf) == 0 {
		if err := c.nextChunk(); err != nil {
			if err == io.EOF {
				err = wire.Refuse(wire.Malformed, "binary http: content", fmt.Sprintf("an end after %d bytes", c.seen), "all its bytes")
			}
			return nil, c.setEnd(err)
		}
	}
	return c.buf[:min(uint64(len(c.buf)), c.remaining)], nil
}

// consume moves on by n bytes of what was ready.
func (c *Content) consume(n int) error {
	c.buf, c.remaining, c.seen = c.buf[n:], c.remaining-uint64(n), c.seen+int64(n)
	if c.length != Indeterminate && c.seen > c.length {
		return c.setEnd(wire.Refuse(wire.Malformed, "binary http: content length", c.seen, c.length))
	}
	if c.known && c.remaining == 0 && c.chunks.Done() {
		return c.finish() // spares the caller another call
	}
	return nil
}

// nextPart makes left more than 0, or returns io.EOF when the content has ended.
func (c *Content) nextPart() (err error) {
	if c.remaining > 0 {
		return nil
	}
	if !c.known {
		if c.remaining, err = c.integer(); err != nil || c.remaining > 0 {
			return err
		}
	}
	return c.finish()
}

// finish reads trailers and padding up to the message's end, and returns io.EOF or the fault.
func (c *Content) finish() error {
	err := c.trailers()
	for err == nil {
		for _, b := range c.buf {
			if b != 0 {
				return c.setEnd(wire.Refuse(wire.Malformed, "binary http: padding", b, 0))
			}
		}
		err = c.nextChunk()
	}
	return c.setEnd(err)
}

// setEnd remembers how reading ended.
func (c *Content) setEnd(err error) error {
	if c.err == nil {
		if err == io.EOF && c.length != Indeterminate && c.seen != c.length {
			err = wire.Refuse(wire.Malformed, "binary http: content length", c.seen, c.length)
		}
		c.err = err
		if err == io.EOF {
			c.buf = nil
			c.chunks.Release()
		}
		if c.After != nil {
			c.err = c.After(err)
		}
	}
	return c.err
}

// nextChunk makes buf the next chunk.
func (c *Content) nextChunk() (err error) {
	c.buf, err = c.chunks.Next()
	return err
}

// integer reads an integer that may lie across chunks. At the message's end it
// is 0, since trailing zeros may be left out.
func (c *Content) integer() (uint64, error) {
	var b [8]byte
	for n := range b {
		for len(c.buf) == 0 {
			switch err := c.nextChunk(); {
			case err == io.EOF && n == 0:
				return 0, nil
			case err == io.EOF:
				return 0, wire.Refuse(wire.Malformed, "binary http: bytes of an integer", n, "all its bytes")
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
	panic("bhttp: an integer of more than 8 bytes")
}

// trailers reads the trailer section.
func (c *Content) trailers() error {
	if c.known {
		size, err := c.integer()
		if err != nil || size == 0 {
			return err
		}
		b, err := c.readSection(size, nil)
		if err != nil {
			return err
		}
		p := &parser{rest: b, known: true}
		c.addTrailers(p.fields())
		return p.err
	}
	section, err := c.lines()
	if err != nil || len(section) == 0 {
		return err
	}
	p := &parser{rest: append(section, 0)}
	c.addTrailers(p.fields())
	return p.err
}

// addTrailers adds trailers to the map that the request or response refers to.
func (c *Content) addTrailers(fields http.Header) {
	for name, values := range fields {
		c.trailer[name] = values
	}
}

// lines reads field lines up to, and without, their terminator.
func (c *Content) lines() ([]byte, error) {
	var section []byte
	for {
		for part := range 2 { // name and value
			size, err := c.integer()
			if err != nil || size == 0 && part == 0 {
				return section, err
			}
			if section, err = c.readSection(size, AppendVarint(section, size)); err != nil {
				return nil, err
			}
		}
	}
}

// readSection reads size bytes behind b.
func (c *Content) readSection(size uint64, b []byte) ([]byte, error) {
	if uint64(len(b))+size > MaxTrailers {
		return nil, wire.Refuse(wire.TooLarge, "binary http: trailers: size in bytes", uint64(len(b))+size, MaxTrailers)
	}
	for size > 0 {
		if len(c.buf) == 0 {
			if err := c.nextChunk(); err == io.EOF {
				return nil, wire.Refuse(wire.Malformed, "binary http: trailers", fmt.Sprintf("an end with %d bytes missing", size), "all their bytes")
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
func (c *Content) Close() error {
	c.setEnd(errBodyClosed)
	if c.Closer == nil {
		return nil
	}
	return c.Closer.Close()
}
