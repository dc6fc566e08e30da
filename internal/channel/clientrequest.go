package channel

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// MaxSmall is the maximum size, in bytes, of content that is read whole before it is sent.
const MaxSmall = 16 << 10

// headSize is the usual size of the head of a small message, in bytes.
const headSize = 256

// responseStart is the size in bytes of the first fields in a response's plaintext: its kind
// and the unit's time.
const responseStart = 1 + 8

// ResponseKind is the first byte of the plaintext of a response.
type ResponseKind byte

// The kinds of responses.
const (
	KindResponse    ResponseKind = iota // binary HTTP follows
	KindNotExecuted                     // a reason follows
	KindClosed                          // nothing follows
)

// responsePrefix is the size in bytes of the unit id and the response nonce before the chunks
// of a response.
const responsePrefix = 16 + 16

// RequestConfig configures a request in a session. Only NotAfter is required.
type RequestConfig struct {
	Target   wire.UnitID  // the unit that the request is bound to; zero: bound to no unit
	NotAfter time.Time    // after this a unit may no longer begin to execute the request
	Flags    wire.Flags   // whether the request closes the session, or wants a receipt
	Valid    func() error // returns an error once policy has ended the session; nil: never does
	Pool     *chunk.Pool  // buffers for chunks; nil: each request allocates its own
}

// ClientRequest seals one request of a client and opens the response to it. Only one goroutine
// may use it at a time. A different goroutine may read the stream of the request, and a
// different one the content of the response.
type ClientRequest struct {
	session *Session
	header  wire.Header
	raw     [wire.HeaderSize]byte
	valid   func() error     // returns an error once policy has ended the session; nil: never does
	record  *unitauth.Record // what the receipt proves; nil: no receipt wanted
	pool    *chunk.Pool      // buffers for chunks; may be nil
}

// NewRequest makes the next request of the session, with a new request number. It returns
// [ErrClosed] if the session is closed.
func (s *Session) NewRequest(c RequestConfig) (*ClientRequest, error) {
	x, err := s.newRequest(c.Target, c.NotAfter, c.Flags)
	if err != nil {
		return nil, err
	}
	x.valid, x.pool = c.Valid, c.Pool
	return x, nil
}

// Session returns the session of the request.
func (x *ClientRequest) Session() *Session { return x.session }

// Number returns the request's number in its session.
func (x *ClientRequest) Number() uint64 { return x.header.Number }

// Record returns the record that the receipt of the response proves, or nil if no receipt is
// wanted. The record is complete once the request was sent and the response was read to its end.
func (x *ClientRequest) Record() *unitauth.Record { return x.record }

// newRequest is NewRequest without Valid and Pool.
func (s *Session) newRequest(target wire.UnitID, notAfter time.Time, flags wire.Flags) (*ClientRequest, error) {
	header, err := s.nextHeader(target, notAfter, flags)
	if err != nil {
		return nil, err
	}
	x := &ClientRequest{session: s, header: header, raw: header.Encode()}
	if flags&wire.FlagReceipt != 0 {
		x.record = &unitauth.Record{}
	}
	return x, nil
}

func (x *ClientRequest) sealer() (*chunk.Writer, error) {
	aead, err := x.session.messageKey(wire.LabelRequestKey, x.raw[:])
	return chunk.NewWriter(aead), err
}

// recordPlaintext appends plaintext of the request to the record.
func (x *ClientRequest) recordPlaintext(plaintext []byte) {
	if x.record != nil {
		x.record.Request = append(x.record.Request, plaintext...)
	}
}

// Whole seals a request in one chunk. It reads the content, of the length in the head, from
// body. A head without a method makes the empty request that closes a session.
func (x *ClientRequest) Whole(h bhttp.Head, body io.Reader) ([]byte, error) {
	s, err := x.sealer()
	if err != nil {
		return nil, err
	}
	const start = wire.HeaderSize + chunk.LengthSize
	b := make([]byte, start, start+chunk.BucketSize(int(h.Length)+headSize)+chunk.TagSize)
	copy(b, x.raw[:])
	if h.Method != "" {
		if b, err = bhttp.AppendRequest(b, h); err != nil {
			return nil, err
		}
		b = slices.Grow(b, int(h.Length))
		if _, err := io.ReadFull(body, b[len(b):len(b)+int(h.Length)]); err != nil {
			return nil, fmt.Errorf("reading the request's body: %w", err)
		}
		b = chunk.PadToBucket(b[:len(b)+int(h.Length)], start)
	}
	if len(b)-start > chunk.MaxPlaintext {
		return nil, wire.Refuse(wire.TooLarge, "request: head: size in bytes", len(b)-start, chunk.MaxPlaintext)
	}
	x.recordPlaintext(b[start:])
	return append(b[:wire.HeaderSize], s.SealChunk(b[wire.HeaderSize:], chunk.Final)...), nil
}

// RequestStream is a request of many chunks. Each Read seals as much as it needs. The first
// chunk contains only the head, so that the unit can begin before there is content.
type RequestStream struct {
	x       *ClientRequest
	sealer  *chunk.Writer
	head    bhttp.Head
	body    io.ReadCloser
	trailer map[string][]string // complete when body has ended
	left    int64               // bytes left of content of known length
	read    atomic.Bool         // Read or WriteTo was called
	begun   bool
	pending
	buf *chunk.Buffer // nil before the second chunk, and after the end
}

// pending is the sealed part of a request that is not sent yet.
type pending struct {
	out   []byte
	ended bool // out is the last part
}

// readPending reads the next sealed bytes into p. It calls fill to seal more if there are none.
func (o *pending) readPending(p []byte, fill func() error) (int, error) {
	if err := o.ready(fill); err != nil {
		return 0, err
	}
	n := copy(p, o.out)
	o.out = o.out[n:]
	return n, nil
}

// ready calls fill until out has at least one byte. At the end it returns io.EOF.
func (o *pending) ready(fill func() error) error {
	for len(o.out) == 0 {
		if o.ended {
			return io.EOF
		}
		if err := fill(); err != nil {
			return err
		}
	}
	return nil
}

// Stream returns a request of many chunks, which is sealed as it is read. The caller may fill
// in the trailer until body has ended.
func (x *ClientRequest) Stream(h bhttp.Head, body io.ReadCloser, trailer map[string][]string) (*RequestStream, error) {
	s, err := x.sealer()
	return &RequestStream{x: x, sealer: s, head: h, body: body, trailer: trailer, left: h.Length}, err
}

// Read reads the request's sealed bytes.
func (s *RequestStream) Read(p []byte) (int, error) {
	s.read.Store(true)
	n, err := s.readPending(p, s.sealNext)
	if err == io.EOF {
		s.release()
	}
	return n, err
}

// WriteTo writes the request's sealed bytes, each chunk in one piece. net/http prefers WriteTo;
// it would copy a body that has only Read through a smaller buffer of its own.
func (s *RequestStream) WriteTo(w io.Writer) (written int64, err error) {
	s.read.Store(true)
	for {
		if err := s.ready(s.sealNext); err == io.EOF {
			s.release()
			return written, nil
		} else if err != nil {
			return written, err
		}
		n, err := w.Write(s.out)
		written, s.out = written+int64(n), s.out[n:]
		if err != nil {
			return written, err
		}
	}
}

// release returns the buffer to the pool after all of it was sent. Only the goroutine that reads
// the stream calls release, at its end; Close may run in a different goroutine during a Read.
func (s *RequestStream) release() {
	s.x.pool.Put(s.buf)
	s.buf = nil
}

// Started reports whether reading of the request has begun.
func (s *RequestStream) Started() bool { return s.read.Load() }

// Close closes the request's body.
func (s *RequestStream) Close() error { return s.body.Close() }

// sealNext seals the next chunk.
func (s *RequestStream) sealNext() error {
	if !s.begun {
		s.begun = true
		return s.sealHead()
	}
	if s.buf == nil {
		s.buf = s.x.pool.Get()
	}
	buf := s.buf.Grow(partRoom + maxPart + chunk.TagSize)
	room := buf[partRoom : partRoom+maxPart]
	if s.head.Length != bhttp.Indeterminate {
		room = room[:min(int64(len(room)), s.left)]
	}
	n, err := s.body.Read(room)
	if err != nil && err != io.EOF {
		return err
	}
	switch {
	case s.head.Length == bhttp.Indeterminate && n > 0:
		s.out = s.sealChunk(indeterminatePart(buf, n), chunk.More)
	case s.head.Length == bhttp.Indeterminate && err == io.EOF:
		return s.sealTrailers([]byte{0})
	case n > 0 && int64(n) == s.left && len(s.trailer) == 0:
		s.ended = true
		s.out = s.sealChunk(buf[partRoom-chunk.LengthSize:partRoom+n], chunk.Final)
	case n > 0:
		s.left -= int64(n)
		s.out = s.sealChunk(buf[partRoom-chunk.LengthSize:partRoom+n], chunk.More)
	case s.left == 0:
		return s.sealTrailers(nil)
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return nil
}

// sealChunk seals a chunk in b, which begins with room for the chunk's length.
func (s *RequestStream) sealChunk(b []byte, at chunk.Flag) []byte {
	s.x.recordPlaintext(b[chunk.LengthSize:])
	return s.sealer.SealChunk(b, at)
}

// sealHead writes the request's header to out and seals the head of the request.
func (s *RequestStream) sealHead() error {
	b := make([]byte, wire.HeaderSize+chunk.LengthSize, 1024)
	copy(b, s.x.raw[:])
	b, err := bhttp.AppendRequest(b, s.head)
	if err != nil {
		return err
	}
	if len(b) > wire.HeaderSize+chunk.LengthSize+chunk.MaxPlaintext {
		return wire.Refuse(wire.TooLarge, "request: head: size in bytes", len(b), chunk.MaxPlaintext)
	}
	s.out = append(b[:wire.HeaderSize], s.sealChunk(b[wire.HeaderSize:], chunk.More)...)
	return nil
}

// sealTrailers seals the final chunk: terminator and trailers.
func (s *RequestStream) sealTrailers(terminator []byte) error {
	b, err := bhttp.AppendTrailers(append(make([]byte, chunk.LengthSize), terminator...), s.trailer, s.head.Length)
	if err != nil {
		return err
	}
	s.ended = true
	s.out = s.sealChunk(b, chunk.Final)
	return nil
}

// A buffer for a chunk begins with room for the chunk's length and, for content of
// indeterminate length, the part's length. The content follows.
const (
	partRoom = chunk.LengthSize + 4
	maxPart  = chunk.MaxPlaintext - 4
)

// indeterminatePart writes the length of a part before its n bytes at partRoom. It returns the
// buffer from the chunk's length on.
func indeterminatePart(buf []byte, n int) []byte {
	start := partRoom - chunk.LengthSize - bhttp.VarintSize(uint64(n))
	bhttp.AppendVarint(buf[:start+chunk.LengthSize], uint64(n))
	return buf[start : partRoom+n]
}

// Response is an authenticated response of a unit.
type Response struct {
	Unit    wire.UnitID
	Time    time.Time // on the unit's clock, when it began to respond
	Kind    ResponseKind
	Reason  wire.Reason      // why the request was not executed
	Head    bhttp.Head       // for KindResponse only
	Content *bhttp.Content   // for KindResponse only; reading fails once the request's Valid refuses
	source  *chunk.Plaintext // source of Content
}

// Receipt returns the unit's receipt once the content was read to its end, or nil if there is
// no receipt.
func (a *Response) Receipt() []byte {
	if a.source == nil {
		return nil
	}
	return a.source.Receipt()
}

// Open reads a response up to the end of its head. It refuses, with "identity", a response that is
// not from the unit to which the request is bound, and otherwise refuses as [chunk.Reader.Next]
// does.
func (x *ClientRequest) Open(r io.Reader) (Response, error) {
	var prefix [responsePrefix]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return Response{}, chunk.TruncatedError(err)
	}
	a := Response{Unit: wire.UnitID(prefix[:16])}
	if x.header.Target != (wire.UnitID{}) && a.Unit != x.header.Target {
		return Response{}, wire.Refuse(wire.WrongIdentity, "response: unit", a.Unit, x.header.Target)
	}
	aead, err := x.session.responseKey(x.header, x.raw[:], prefix[:16], prefix[16:])
	if err != nil {
		return Response{}, err
	}
	s := chunk.NewPlaintext(r, aead, x.pool)
	s.Valid = x.valid
	if x.record != nil {
		s.EndsInReceipt, s.Copy = true, (*responseRecorder)(x.record)
	}
	first, err := s.Next()
	if err != nil {
		return Response{}, err
	}
	if len(first) < responseStart {
		return Response{}, wire.Refuse(wire.Malformed, "response: size in bytes", len(first), "its kind and time")
	}
	a.Kind = ResponseKind(first[0])
	if a.Time, err = unitauth.ParseTime(first[1:responseStart]); err != nil {
		return Response{}, err
	}
	switch rest := first[responseStart:]; a.Kind {
	case KindResponse:
		if a.Head, rest, err = bhttp.ParseResponse(rest, bhttp.Whole); err != nil {
			return Response{}, err
		}
		a.Content, a.source = bhttp.NewContent(s, a.Head, rest), s
	case KindNotExecuted, KindClosed:
		a.Reason = wire.Reason(bytes.TrimRight(rest, "\x00"))
		if a.Kind == KindClosed && a.Reason != "" {
			return Response{}, wire.Refuse(wire.Malformed, "response: content of closed", len(a.Reason), 0)
		}
		if _, err := s.Next(); err != io.EOF {
			return Response{}, wire.Refuse(wire.Malformed, "response: chunks", "a chunk after the final one of its kind", "1")
		}
	default:
		return Response{}, wire.Refuse(wire.Malformed, "response: kind", a.Kind, "0 to 2")
	}
	return a, nil
}

// responseRecorder appends plaintext of the response to a record.
type responseRecorder unitauth.Record

func (r *responseRecorder) Write(b []byte) (int, error) {
	r.Response = append(r.Response, b...)
	return len(b), nil
}
