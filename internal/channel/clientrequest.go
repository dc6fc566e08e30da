package channel

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// buckets are the sizes in bytes to which a message in one chunk is padded: 256
// bytes, 1, 4 and 16 KiB of content, with 256 bytes for the head.
var buckets = []int{512, 1280, 4352, 16640}

// MaxSmall is the largest content in bytes that is read whole before it is sent.
const MaxSmall = 16 << 10

// headSize is what the head of a small message takes mostly, in bytes.
const headSize = 256

// bucket is the size to which n bytes are padded.
func bucket(n int) int {
	i, _ := slices.BinarySearch(buckets, n)
	if i == len(buckets) {
		return n
	}
	return buckets[i]
}

// pad fills up to the next bucket with zeros what begins at from in b. What is
// larger than all buckets stays as it is.
func pad(b []byte, from int) []byte {
	n := bucket(len(b) - from)
	b = slices.Grow(b, from+n-len(b)+tagSize)
	full := b[:from+n]
	clear(full[len(b):])
	return full
}

// answerFirst is the size in bytes of what the plaintext of an answer begins with:
// its kind, and the unit's time.
const answerFirst = 1 + 8

// ResponseKind says what a response is, by the first byte of its plaintext.
type ResponseKind byte

// The kinds.
const (
	KindResponse    ResponseKind = iota // binary HTTP follows
	KindNotExecuted                     // a reason follows
	KindClosed                          // nothing follows
)

// answerPrefix is the size in bytes of what stands before the chunks of an
// answer: unit id and response nonce.
const answerPrefix = 16 + 16

// RequestConfig says how a request of a session is sent. Only NotAfter is required.
type RequestConfig struct {
	Target   wire.UnitID  // the unit that the request is bound to; zero: none
	NotAfter time.Time    // when a unit may no longer begin to execute it
	Flags    wire.Flags   // whether it closes the session, or wants a receipt
	Valid    func() error // refuses once policy has ended the session; nil: never
	Pool     *ChunkPool   // lends buffers for its chunks; nil: they are made
}

// ClientRequest seals one request of a client, and opens the response to it. It is used
// by one goroutine at a time, but for the stream of the request and the content of the
// response, each of which another one may read.
type ClientRequest struct {
	session *Session
	header  wire.Header
	raw     [wire.HeaderSize]byte
	stands  func() error // refuses once policy has ended the session; nil: never
	record  *Record      // what a receipt is about; nil: none wanted
	pool    *ChunkPool   // for its chunks; nil: none
}

// NewRequest takes the next request number of the session. It refuses, with
// [ErrClosed], a session that was closed.
func (s *Session) NewRequest(c RequestConfig) (*ClientRequest, error) {
	x, err := s.begin(c.Target, c.NotAfter, c.Flags)
	if err != nil {
		return nil, err
	}
	x.stands, x.pool = c.Valid, c.Pool
	return x, nil
}

// Session is the session of the request.
func (x *ClientRequest) Session() *Session { return x.session }

// Number is the request's number in its session.
func (x *ClientRequest) Number() uint64 { return x.header.Number }

// Record is what the receipt of the response is about: complete when the request was
// sent and the response read to its end. It is nil where no receipt is wanted.
func (x *ClientRequest) Record() *Record { return x.record }

// begin takes the next request number of the session.
func (s *Session) begin(target wire.UnitID, notAfter time.Time, flags wire.Flags) (*ClientRequest, error) {
	header, err := s.take(target, notAfter, flags)
	if err != nil {
		return nil, err
	}
	x := &ClientRequest{session: s, header: header, raw: header.Encode()}
	if flags&wire.FlagReceipt != 0 {
		x.record = &Record{}
	}
	return x, nil
}

func (x *ClientRequest) sealer() (*sealer, error) {
	aead, err := x.session.key(wire.LabelRequestKey, x.raw[:])
	return &sealer{aead: aead}, err
}

// said keeps plaintext of the request for the receipt.
func (x *ClientRequest) said(plaintext []byte) {
	if x.record != nil {
		x.record.Request = append(x.record.Request, plaintext...)
	}
}

// Whole seals a request in one chunk, whose content of the head's length is read
// from body. Without a method it is the empty one that closes a session.
func (x *ClientRequest) Whole(h bhttp.Head, body io.Reader) ([]byte, error) {
	s, err := x.sealer()
	if err != nil {
		return nil, err
	}
	const start = wire.HeaderSize + lengthSize
	b := make([]byte, start, start+bucket(int(h.Length)+headSize)+tagSize)
	copy(b, x.raw[:])
	if h.Method != "" {
		if b, err = bhttp.AppendRequest(b, h); err != nil {
			return nil, err
		}
		b = slices.Grow(b, int(h.Length))
		if _, err := io.ReadFull(body, b[len(b):len(b)+int(h.Length)]); err != nil {
			return nil, fmt.Errorf("reading the request's body: %w", err)
		}
		b = pad(b[:len(b)+int(h.Length)], start)
	}
	if len(b)-start > MaxPlaintext {
		return nil, wire.Refuse(wire.TooLarge, "request: head: size in bytes", len(b)-start, MaxPlaintext)
	}
	x.said(b[start:])
	return append(b[:wire.HeaderSize], s.seal(b[wire.HeaderSize:], final)...), nil
}

// RequestStream is a request of many chunks, sealed as it is read: first the head alone,
// so that the unit begins before there is content.
type RequestStream struct {
	x       *ClientRequest
	sealer  *sealer
	head    bhttp.Head
	body    io.ReadCloser
	trailer map[string][]string // filled in by the time body has ended
	left    int64               // of content of known length
	read    atomic.Bool         // something was, or was to be, read
	begun   bool
	outbox
	buf *chunkBuffer // nil before the second chunk, and after the end
}

// outbox is what is sealed of a request and not sent yet.
type outbox struct {
	out   []byte
	ended bool // nothing follows out
}

// take gives the next bytes; fill seals more where there are none.
func (o *outbox) take(p []byte, fill func() error) (int, error) {
	if err := o.ready(fill); err != nil {
		return 0, err
	}
	n := copy(p, o.out)
	o.out = o.out[n:]
	return n, nil
}

// ready makes out at least one byte, or gives io.EOF.
func (o *outbox) ready(fill func() error) error {
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

// Stream seals a request of many chunks as it is read. The trailer may be filled in
// until body has ended.
func (x *ClientRequest) Stream(h bhttp.Head, body io.ReadCloser, trailer map[string][]string) (*RequestStream, error) {
	s, err := x.sealer()
	return &RequestStream{x: x, sealer: s, head: h, body: body, trailer: trailer, left: h.Length}, err
}

// Read gives the request's bytes.
func (s *RequestStream) Read(p []byte) (int, error) {
	s.read.Store(true)
	n, err := s.take(p, s.fill)
	if err == io.EOF {
		s.release()
	}
	return n, err
}

// WriteTo writes the request's bytes, each chunk at once. net/http asks for it, and
// copies through a smaller buffer of its own what has only Read.
func (s *RequestStream) WriteTo(w io.Writer) (written int64, err error) {
	s.read.Store(true)
	for {
		if err := s.ready(s.fill); err == io.EOF {
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

// release gives the buffer back, all of which was sent. Only who has read the last
// of it may: a body is closed by others, and while it is read.
func (s *RequestStream) release() {
	s.x.pool.put(s.buf)
	s.buf = nil
}

// Started reports whether a part of the request was read, or was to be.
func (s *RequestStream) Started() bool { return s.read.Load() }

// Close closes the request's body.
func (s *RequestStream) Close() error { return s.body.Close() }

// fill seals the next chunk.
func (s *RequestStream) fill() error {
	if !s.begun {
		s.begun = true
		return s.first()
	}
	if s.buf == nil {
		s.buf = s.x.pool.get()
	}
	buf := s.buf.grow(partRoom + maxPart + tagSize)
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
		s.out = s.chunk(indeterminatePart(buf, n), inner)
	case s.head.Length == bhttp.Indeterminate && err == io.EOF:
		return s.last([]byte{0})
	case n > 0 && int64(n) == s.left && len(s.trailer) == 0:
		s.ended = true
		s.out = s.chunk(buf[partRoom-lengthSize:partRoom+n], final)
	case n > 0:
		s.left -= int64(n)
		s.out = s.chunk(buf[partRoom-lengthSize:partRoom+n], inner)
	case s.left == 0:
		return s.last(nil)
	case err == io.EOF:
		return io.ErrUnexpectedEOF
	}
	return nil
}

// chunk seals a buffer that begins with room for the length.
func (s *RequestStream) chunk(b []byte, at place) []byte {
	s.x.said(b[lengthSize:])
	return s.sealer.seal(b, at)
}

// first is header and head.
func (s *RequestStream) first() error {
	b := make([]byte, wire.HeaderSize+lengthSize, 1024)
	copy(b, s.x.raw[:])
	b, err := bhttp.AppendRequest(b, s.head)
	if err != nil {
		return err
	}
	if len(b) > wire.HeaderSize+lengthSize+MaxPlaintext {
		return wire.Refuse(wire.TooLarge, "request: head: size in bytes", len(b), MaxPlaintext)
	}
	s.out = append(b[:wire.HeaderSize], s.chunk(b[wire.HeaderSize:], inner)...)
	return nil
}

// last is the chunk of the trailers.
func (s *RequestStream) last(terminator []byte) error {
	b, err := bhttp.AppendTrailers(append(make([]byte, lengthSize), terminator...), s.trailer, s.head.Length)
	if err != nil {
		return err
	}
	s.ended = true
	s.out = s.chunk(b, final)
	return nil
}

// A part of content is read behind room for the chunk's length and, where the
// content is of indeterminate length, the part's.
const (
	partRoom = lengthSize + 4
	maxPart  = MaxPlaintext - 4
)

// indeterminatePart puts the part's length before its n bytes at partRoom and
// gives the buffer from the chunk's length on.
func indeterminatePart(buf []byte, n int) []byte {
	start := partRoom - lengthSize - bhttp.VarintSize(uint64(n))
	bhttp.AppendVarint(buf[:start+lengthSize], uint64(n))
	return buf[start : partRoom+n]
}

// Response is what a unit answered, authenticated.
type Response struct {
	Unit    wire.UnitID
	Time    time.Time // the unit's, when it began to respond
	Kind    ResponseKind
	Reason  wire.Reason    // of what was not executed
	Head    bhttp.Head     // of KindResponse alone, as the content is
	Content *bhttp.Content // fails once Valid of the request refuses
	source  *source        // that Content reads
}

// Receipt is the unit's receipt, once the content was read to its end; nil: there is
// none.
func (a *Response) Receipt() []byte {
	if a.source == nil {
		return nil
	}
	return a.source.proof
}

// Open reads a response up to the end of its head. It refuses with "identity" an
// answer of another unit than the bound one, and as [opener.next] does.
func (x *ClientRequest) Open(r io.Reader) (Response, error) {
	var prefix [answerPrefix]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return Response{}, cutOff(err)
	}
	a := Response{Unit: wire.UnitID(prefix[:16])}
	if x.header.Target != (wire.UnitID{}) && a.Unit != x.header.Target {
		return Response{}, wire.Refuse(wire.WrongIdentity, "answer: unit", a.Unit, x.header.Target)
	}
	aead, err := x.session.answerKey(x.header, x.raw[:], prefix[:16], prefix[16:])
	if err != nil {
		return Response{}, err
	}
	s := newSource(r, aead, x.pool)
	s.stands = x.stands
	if x.record != nil {
		s.receipt, s.copy = true, (*answerRecorder)(x.record)
	}
	first, err := s.Next()
	if err != nil {
		return Response{}, err
	}
	if len(first) < answerFirst {
		return Response{}, wire.Refuse(wire.Malformed, "answer: size in bytes", len(first), "its kind and time")
	}
	a.Kind = ResponseKind(first[0])
	if a.Time, err = parseTime(first[1:answerFirst]); err != nil {
		return Response{}, err
	}
	switch rest := first[answerFirst:]; a.Kind {
	case KindResponse:
		if a.Head, rest, err = bhttp.ParseResponse(rest, bhttp.Whole); err != nil {
			return Response{}, err
		}
		a.Content, a.source = bhttp.NewContent(s, a.Head, rest), s
	case KindNotExecuted, KindClosed:
		a.Reason = wire.Reason(bytes.TrimRight(rest, "\x00"))
		if a.Kind == KindClosed && a.Reason != "" {
			return Response{}, wire.Refuse(wire.Malformed, "answer: content of closed", len(a.Reason), 0)
		}
		if _, err := s.Next(); err != io.EOF {
			return Response{}, wire.Refuse(wire.Malformed, "answer: chunks", "more", "one")
		}
	default:
		return Response{}, wire.Refuse(wire.Malformed, "answer: kind", a.Kind, "0 to 2")
	}
	return a, nil
}

// answerRecorder adds plaintext of the answer to a record.
type answerRecorder Record

func (r *answerRecorder) Write(b []byte) (int, error) {
	r.Answer = append(r.Answer, b...)
	return len(b), nil
}
