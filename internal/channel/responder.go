package channel

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// chunkSink encrypts the chunks of a response.
type chunkSink interface {
	// encrypt encrypts b, whose first 4 bytes are room for a length, and returns the bytes
	// to send now. It returns none while the sink buffers the message.
	encrypt(b []byte, at chunk.Flag) ([]byte, error)
}

// sealedSink seals the chunks of a response in a session.
type sealedSink struct{ *chunk.Writer }

func (s sealedSink) encrypt(b []byte, at chunk.Flag) ([]byte, error) { return s.SealChunk(b, at), nil }

// Responder seals the response to one request, in a session or one-off. It buffers the content
// until the head is known. Then the caller calls either [Responder.Whole] and
// [Responder.Finish], or [Responder.Begin], any number of [Responder.Write] and
// [Responder.Flush], and [Responder.FinishStream]. [Responder.Release] is the last call. Only
// one goroutine may use a Responder at a time.
type Responder struct {
	w       io.Writer
	host    *Host
	request *ServerRequest // nil for a one-off request
	prefix  []byte         // sent before the chunks
	sink    chunkSink
	begun   bool      // a part was sent
	sum     hash.Hash // hash of the response's plaintext; nil when no receipt is wanted
	length  int64     // length of the content, once the head is known
	start   int       // offset in buf of the chunk's length
	lent    *[]byte   // buffer to return to the pool
	buf     []byte    // current chunk, not yet sealed
}

// headRoom is the room in bytes that stays free before the content until the head is known.
const headRoom = 2 << 10

// buffer returns a buffer for whole chunks.
func (h *Host) buffer() *[]byte {
	if b, ok := h.responses.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, chunk.LengthSize+chunk.MaxPlaintext+chunk.TagSize)
	return &b
}

// Responder makes the responder of an authenticated request. It writes to w.
func (x *ServerRequest) Responder(w io.Writer) (*Responder, error) {
	prefix, s, err := x.responseWriter()
	if err != nil {
		return nil, err
	}
	r := newResponder(w, x.host, sealedSink{s}, prefix[:])
	r.request = x
	if x.digest != nil {
		r.sum = sha256.New()
	}
	return r, nil
}

func newResponder(w io.Writer, h *Host, sink chunkSink, prefix []byte) *Responder {
	b := h.buffer()
	return &Responder{w: w, host: h, sink: sink, prefix: prefix, start: headRoom, lent: b, buf: (*b)[:headRoom]}
}

// BufferContent buffers content before the head is known, at most [MaxSmall] bytes in all.
func (r *Responder) BufferContent(p []byte) { r.buf = append(r.buf, p...) }

// BufferedContent returns the buffered content.
func (r *Responder) BufferedContent() []byte { return r.buf[headRoom:] }

// Begun reports whether a part of the response was sent.
func (r *Responder) Begun() bool { return r.begun }

// Begin puts kind, time and head before the buffered content, so that all of them are in the
// first chunk. The response to a one-off request has neither kind nor time.
func (r *Responder) Begin(h bhttp.Head) error {
	r.length = h.Length
	b := make([]byte, chunk.LengthSize, 256)
	if r.request != nil {
		b = append(b, r.request.responsePrefix(KindResponse)...)
	}
	b, err := bhttp.AppendResponse(b, h)
	if err != nil {
		return err
	}
	if len(b) > chunk.MaxPlaintext/2 {
		return wire.Refuse(wire.TooLarge, "response: head: size in bytes", len(b), chunk.MaxPlaintext/2)
	}
	content := r.BufferedContent()
	if h.Length == bhttp.Indeterminate && len(content) > 0 {
		b = bhttp.AppendVarint(b, uint64(len(content)))
	}
	if r.start = headRoom - len(b); r.start < 0 { // the head is larger than headRoom: move the content
		r.start, r.buf = 0, append(append(make([]byte, 0, cap(r.buf)), b...), content...)
		return nil
	}
	copy(r.buf[r.start:], b)
	return nil
}

// Write adds content to chunks and sends the chunks that are full.
func (r *Responder) Write(p []byte) (int, error) {
	for left := p; len(left) > 0; {
		room := r.start + chunk.LengthSize + chunk.MaxPlaintext - len(r.buf)
		room = min(room, cap(r.buf)-chunk.TagSize-len(r.buf))
		if r.length == bhttp.Indeterminate {
			room -= 4 // for the part's length
		}
		if room <= 0 {
			if err := r.sendChunk(chunk.More); err != nil {
				return len(p), err
			}
			continue
		}
		n := min(room, len(left))
		if r.length == bhttp.Indeterminate {
			r.buf = bhttp.AppendVarint(r.buf, uint64(n))
		}
		r.buf, left = append(r.buf, left[:n]...), left[n:]
	}
	return len(p), nil
}

// Flush sends the current chunk, unless it is empty.
func (r *Responder) Flush() error { return r.sendChunk(chunk.More) }

// sendChunk seals and sends the current chunk. Only a final chunk may be empty.
func (r *Responder) sendChunk(at chunk.Flag) error {
	plaintext := r.buf[r.start+chunk.LengthSize:]
	if len(plaintext) == 0 && at == chunk.More {
		return nil
	}
	if r.sum != nil {
		r.sum.Write(plaintext)
	}
	sealed, err := r.sink.encrypt(r.buf[r.start:], at)
	r.start, r.buf = 0, r.buf[:chunk.LengthSize]
	if err != nil || len(sealed) == 0 {
		return err
	}
	if !r.begun {
		r.begun = true
		_, _ = r.w.Write(r.prefix) // after an error the next write fails too
	}
	_, err = r.w.Write(sealed)
	return err
}

// FinishStream ends a response after [Responder.Begin]. It sends the trailers, and a receipt if
// the client wants one.
func (r *Responder) FinishStream(trailer map[string][]string) error {
	if r.length == bhttp.Indeterminate {
		r.buf = append(r.buf, 0)
	}
	if len(r.buf)-r.start > chunk.LengthSize+chunk.MaxPlaintext-bhttp.MaxTrailers {
		if err := r.sendChunk(chunk.More); err != nil {
			return err
		}
	}
	var err error
	if r.buf, err = bhttp.AppendTrailers(r.buf, trailer, r.length); err != nil {
		return err
	}
	return r.Finish()
}

// Whole makes a small response of the buffered content: one padded chunk. It returns the number
// of bytes that [Responder.Finish] will send, or 0 if that number is not known.
func (r *Responder) Whole(h bhttp.Head, trailer map[string][]string) (size int, err error) {
	h.Length = int64(len(r.BufferedContent()))
	if err := r.Begin(h); err != nil {
		return 0, err
	}
	if r.buf, err = bhttp.AppendTrailers(r.buf, trailer, h.Length); err != nil {
		return 0, err
	}
	r.buf = chunk.PadToBucket(r.buf, r.start+chunk.LengthSize)
	if r.request != nil && r.sum == nil {
		size = responsePrefix + len(r.buf) - r.start + chunk.TagSize
	}
	return size, nil
}

// Finish sends the rest of the response as the final chunk. If the client wants a receipt, it
// sends the rest, reads the request to its end, and sends the receipt as the final chunk.
func (r *Responder) Finish() error {
	if r.sum == nil {
		return r.sendChunk(chunk.Final)
	}
	if err := r.sendChunk(chunk.More); err != nil {
		return err
	}
	for !r.request.Whole() { // the app may have left the request unread, or closed its body
		if _, err := r.request.source.Next(); err != nil {
			return fmt.Errorf("reading the request for its receipt: %w", err)
		}
	}
	request, response := wire.Digest(r.request.digest.Sum(nil)), wire.Digest(r.sum.Sum(nil))
	at := r.request.unitTime()
	head, err := r.host.reachedHead(r.request.credentials, at)
	if err != nil {
		return err
	}
	receipt, err := unitauth.SignReceipt(r.host.key, r.request.credentials.chain, unitauth.ReceiptClaims{
		Session: r.request.header.Session, Number: r.request.header.Number, Request: request, Response: response, Unit: r.host.id, At: at, Head: head,
	})
	if err != nil {
		return err
	}
	r.sum = nil
	r.buf = append(r.buf, receipt...)
	return r.sendChunk(chunk.Final)
}

// SizeBuffered returns the number of buffered bytes of a response that is sent in one piece.
func (r *Responder) SizeBuffered() int {
	if c, ok := r.sink.(ohttpSink); ok {
		return c.Buffered()
	}
	return 0
}

// Release returns the buffer to its pool. The buffer contains ciphertext, and only plaintext
// that is in the app's memory too.
func (r *Responder) Release() {
	*r.lent, r.buf = r.buf[:0], nil // not the buffer from before a large head, which contains plaintext
	r.host.responses.Put(r.lent)
}
