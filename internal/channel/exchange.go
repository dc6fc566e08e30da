package channel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// buckets are the sizes in bytes to which a message in one chunk is padded: 256
// bytes, 1, 4 and 16 KiB of content, with 256 bytes for the head.
var buckets = []int{512, 1280, 4352, 16640}

// maxSmall is the largest content in bytes that is read whole before it is sent.
const maxSmall = 16 << 10

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

// What an answer is, by the first byte of its plaintext.
const (
	kindResponse    = 0 // binary HTTP follows
	kindNotExecuted = 1 // a reason follows
	kindClosed      = 2 // nothing follows
)

// answerPrefix is the size in bytes of what stands before the chunks of an
// answer: unit id and response nonce.
const answerPrefix = 16 + 16

// exchange is one request of a client and its answer.
type exchange struct {
	session *Session
	header  wire.Header
	raw     [wire.HeaderSize]byte
	stands  func() error // refuses once policy has ended the session; nil: nobody asks
	record  *Record      // what a receipt is about; nil: none wanted
	pool    *chunkPool   // for its chunks; nil: none
}

// begin takes the next request number of the session.
func (s *Session) begin(target wire.UnitID, notAfter time.Time, flags wire.Flags) (*exchange, error) {
	header, err := s.take(target, notAfter, flags)
	if err != nil {
		return nil, err
	}
	x := &exchange{session: s, header: header, raw: header.Encode()}
	if flags&wire.FlagReceipt != 0 {
		x.record = &Record{}
	}
	return x, nil
}

func (x *exchange) sealer() (*sealer, error) {
	aead, err := x.session.key(wire.LabelRequestKey, x.raw[:])
	return &sealer{aead: aead}, err
}

// said keeps plaintext of the request for the receipt.
func (x *exchange) said(plaintext []byte) {
	if x.record != nil {
		x.record.Request = append(x.record.Request, plaintext...)
	}
}

// whole is a request in one chunk, whose content of the head's length is read
// from body. Without a method it is the empty one that closes a session.
func (x *exchange) whole(h bhttp.Head, body io.Reader) ([]byte, error) {
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
	if len(b)-start > maxPlaintext {
		return nil, wire.Refuse(wire.TooLarge, "request: head: size in bytes", len(b)-start, maxPlaintext)
	}
	x.said(b[start:])
	return append(b[:wire.HeaderSize], s.seal(b[wire.HeaderSize:], final)...), nil
}

// stream is a request of many chunks, sealed as it is read: first the head alone,
// so that the unit begins before there is content.
type stream struct {
	x       *exchange
	sealer  *sealer
	head    bhttp.Head
	body    io.ReadCloser
	trailer http.Header // filled in by the time body has ended
	left    int64       // of content of known length
	read    atomic.Bool // something was, or was to be, read
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

func (x *exchange) stream(h bhttp.Head, body io.ReadCloser, trailer http.Header) (*stream, error) {
	s, err := x.sealer()
	return &stream{x: x, sealer: s, head: h, body: body, trailer: trailer, left: h.Length}, err
}

// Read gives the request's bytes.
func (s *stream) Read(p []byte) (int, error) {
	s.read.Store(true)
	n, err := s.take(p, s.fill)
	if err == io.EOF {
		s.release()
	}
	return n, err
}

// WriteTo writes the request's bytes, each chunk at once. net/http asks for it, and
// copies through a smaller buffer of its own what has only Read.
func (s *stream) WriteTo(w io.Writer) (written int64, err error) {
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
func (s *stream) release() {
	s.x.pool.put(s.buf)
	s.buf = nil
}

// Close closes the request's body.
func (s *stream) Close() error { return s.body.Close() }

// fill seals the next chunk.
func (s *stream) fill() error {
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
func (s *stream) chunk(b []byte, at place) []byte {
	s.x.said(b[lengthSize:])
	return s.sealer.seal(b, at)
}

// first is header and head.
func (s *stream) first() error {
	b := make([]byte, wire.HeaderSize+lengthSize, 1024)
	copy(b, s.x.raw[:])
	b, err := bhttp.AppendRequest(b, s.head)
	if err != nil {
		return err
	}
	if len(b) > wire.HeaderSize+lengthSize+maxPlaintext {
		return wire.Refuse(wire.TooLarge, "request: head: size in bytes", len(b), maxPlaintext)
	}
	s.out = append(b[:wire.HeaderSize], s.chunk(b[wire.HeaderSize:], inner)...)
	return nil
}

// last is the chunk of the trailers.
func (s *stream) last(terminator []byte) error {
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
	maxPart  = maxPlaintext - 4
)

// indeterminatePart puts the part's length before its n bytes at partRoom and
// gives the buffer from the chunk's length on.
func indeterminatePart(buf []byte, n int) []byte {
	start := partRoom - lengthSize - bhttp.VarintSize(uint64(n))
	bhttp.AppendVarint(buf[:start+lengthSize], uint64(n))
	return buf[start : partRoom+n]
}

// reply is what a unit answered, authenticated.
type reply struct {
	unit    wire.UnitID
	time    time.Time // the unit's, when it began to answer
	kind    byte
	reason  wire.Reason // of what was not executed
	head    bhttp.Head
	content *bhttp.Content
	source  *source // that content reads
}

// open reads an answer up to the end of its head. It refuses with "identity" an
// answer of another unit than the bound one, and as [opener.next] does.
func (x *exchange) open(r io.Reader) (reply, error) {
	var prefix [answerPrefix]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return reply{}, cutOff(err)
	}
	a := reply{unit: wire.UnitID(prefix[:16])}
	if x.header.Target != (wire.UnitID{}) && a.unit != x.header.Target {
		return reply{}, wire.Refuse(wire.WrongIdentity, "answer: unit", a.unit, x.header.Target)
	}
	aead, err := x.session.answerKey(x.header, x.raw[:], prefix[:16], prefix[16:])
	if err != nil {
		return reply{}, err
	}
	s := newSource(r, aead, x.pool)
	s.stands = x.stands
	if x.record != nil {
		s.receipt, s.copy = true, (*answerRecorder)(x.record)
	}
	first, err := s.Next()
	if err != nil {
		return reply{}, err
	}
	if len(first) < answerFirst {
		return reply{}, wire.Refuse(wire.Malformed, "answer: size in bytes", len(first), "its kind and time")
	}
	a.kind = first[0]
	if a.time, err = parseTime(first[1:answerFirst]); err != nil {
		return reply{}, err
	}
	switch rest := first[answerFirst:]; a.kind {
	case kindResponse:
		if a.head, rest, err = bhttp.ParseResponse(rest, bhttp.Whole); err != nil {
			return reply{}, err
		}
		a.content, a.source = bhttp.NewContent(s, a.head, rest), s
	case kindNotExecuted, kindClosed:
		a.reason = wire.Reason(bytes.TrimRight(rest, "\x00"))
		if a.kind == kindClosed && a.reason != "" {
			return reply{}, wire.Refuse(wire.Malformed, "answer: content of closed", len(a.reason), 0)
		}
		if _, err := s.Next(); err != io.EOF {
			return reply{}, wire.Refuse(wire.Malformed, "answer: chunks", "more", "one")
		}
	default:
		return reply{}, wire.Refuse(wire.Malformed, "answer: kind", a.kind, "0 to 2")
	}
	return a, nil
}

// parseTime reads the time of a unit, Unix milliseconds in 8 bytes.
func parseTime(b []byte) (time.Time, error) {
	ms := binary.BigEndian.Uint64(b)
	if ms > math.MaxInt64 {
		return time.Time{}, wire.Refuse(wire.Malformed, "unit: time in milliseconds", ms, "below 2^63")
	}
	return time.UnixMilli(int64(ms)), nil
}

// answerRecorder adds plaintext of the answer to a record.
type answerRecorder Record

func (r *answerRecorder) Write(b []byte) (int, error) {
	r.Answer = append(r.Answer, b...)
	return len(b), nil
}
