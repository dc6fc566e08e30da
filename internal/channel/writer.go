package channel

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// outlet encrypts the chunks of an answer.
type outlet interface {
	// put encrypts b, whose first 4 bytes are room for a length, and gives what
	// is to be sent of the message: nothing as long as it is kept back.
	put(b []byte, at place) ([]byte, error)
}

// put is seal, as an [outlet].
func (s *sealer) put(b []byte, at place) ([]byte, error) { return s.seal(b, at), nil }

// answerWriter is the [http.ResponseWriter] of a request in a session, or of a
// one-off. What an app writes is kept until it is more than 16 KiB, or flushed, or all: a small
// answer is one chunk of known length. It is used by one goroutine at a time.
type answerWriter struct {
	w         http.ResponseWriter
	host      *Host
	x         *inbound // in a session
	kind      string   // the content type outside
	prefix    []byte   // before the chunks
	outlet    outlet
	begun     bool      // something was sent
	sum       hash.Hash // of the answer's plaintext; nil when no receipt is wanted
	header    http.Header
	status    int   // 0 before WriteHeader
	length    int64 // of the content, if the app said it
	written   int64 // content
	noContent bool  // the answer to a HEAD
	streaming bool
	start     int     // where in buf the chunk's length goes
	lent      *[]byte // for buf, when it is given back
	buf       []byte  // the chunk that is filled
}

// headRoom is kept free before the content, in bytes, until the head is known.
const headRoom = 2 << 10

// buffer takes a buffer for whole chunks.
func (h *Host) buffer() *[]byte {
	if b, ok := h.answers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, lengthSize+maxPlaintext+tagSize)
	return &b
}

func newAnswerWriter(w http.ResponseWriter, x *inbound) (*answerWriter, error) {
	prefix, s, err := x.answerSealer()
	if err != nil {
		return nil, err
	}
	a := newWriter(w, x.host, s)
	a.x, a.kind, a.prefix = x, wire.TypeAnswer, prefix[:]
	if x.said != nil {
		a.sum = sha256.New()
	}
	return a, nil
}

func newWriter(w http.ResponseWriter, h *Host, out outlet) *answerWriter {
	b := h.buffer()
	return &answerWriter{w: w, host: h, outlet: out, header: make(http.Header, 4), length: bhttp.Indeterminate, start: headRoom, lent: b, buf: (*b)[:headRoom]}
}

// Header is the header of the answer.
func (a *answerWriter) Header() http.Header { return a.header }

// WriteHeader sets the status. Informational responses are not sent.
func (a *answerWriter) WriteHeader(status int) {
	if a.status != 0 || status < 200 {
		return
	}
	a.status = status
	if said := a.header.Get("Content-Length"); said != "" {
		if n, err := strconv.ParseInt(said, 10, 62); err == nil && n >= 0 {
			a.length = n
		}
		if !a.noContent {
			a.header.Del("Content-Length")
		}
	}
	if status == http.StatusNoContent || status == http.StatusNotModified {
		a.noContent = true
	}
}

// Write adds content.
func (a *answerWriter) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.noContent {
		return len(p), nil
	}
	a.written += int64(len(p))
	if a.length >= 0 && a.written > a.length {
		return 0, http.ErrContentLength
	}
	if !a.streaming && len(a.buf)-headRoom+len(p) <= maxSmall {
		a.buf = append(a.buf, p...)
		return len(p), nil
	}
	if err := a.stream(p); err != nil {
		return 0, err
	}
	return len(p), a.add(p)
}

// WriteString is Write without a copy of s where none is needed.
func (a *answerWriter) WriteString(s string) (int, error) { return a.Write([]byte(s)) }

// Flush sends what was written.
func (a *answerWriter) Flush() { _ = a.FlushError() }

// FlushError sends what was written, and says what went wrong.
func (a *answerWriter) FlushError() error {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if err := a.stream(nil); err != nil {
		return err
	}
	if err := a.send(inner); err != nil || !a.begun {
		return err
	}
	return http.NewResponseController(a.w).Flush()
}

// encode puts kind, time and head before the content in buf, which is of this
// length, and so begins the first chunk. A one-off has neither kind nor time.
func (a *answerWriter) encode(length int64, sample []byte) error {
	if _, ok := a.header["Content-Type"]; !ok && len(sample) > 0 && a.header.Get("Content-Encoding") == "" {
		a.header.Set("Content-Type", http.DetectContentType(sample))
	}
	b := make([]byte, lengthSize, 256)
	if a.x != nil {
		b = append(b, a.x.begins(kindResponse)...)
	}
	b, err := bhttp.AppendResponse(b, bhttp.Head{Status: a.status, Fields: a.header, Length: length})
	if err != nil {
		return err
	}
	if len(b) > maxPlaintext/2 {
		return wire.Refuse(wire.TooLarge, "answer: head: size in bytes", len(b), maxPlaintext/2)
	}
	content := a.buf[headRoom:]
	if length == bhttp.Indeterminate && len(content) > 0 {
		b = bhttp.AppendVarint(b, uint64(len(content)))
	}
	if a.start = headRoom - len(b); a.start < 0 { // a large head: the content moves
		a.start, a.buf = 0, append(append(make([]byte, 0, cap(a.buf)), b...), content...)
		return nil
	}
	copy(a.buf[a.start:], b)
	return nil
}

// stream begins to stream: the head, and the content so far, are in the first
// chunk. Next is what is written next.
func (a *answerWriter) stream(next []byte) error {
	if a.streaming {
		return nil
	}
	a.w.Header().Set("X-Accel-Buffering", "no") // nginx holds streamed answers without it
	a.streaming = true
	sample := a.buf[headRoom:]
	if len(sample) == 0 {
		sample = next
	}
	if a.noContent {
		a.length = 0
	}
	early := a.trailers()
	defer maps.Copy(a.header, early)
	return a.encode(a.length, sample)
}

// add puts content into chunks and sends those that are full.
func (a *answerWriter) add(p []byte) error {
	for len(p) > 0 {
		room := a.start + lengthSize + maxPlaintext - len(a.buf)
		room = min(room, cap(a.buf)-tagSize-len(a.buf))
		if a.length == bhttp.Indeterminate {
			room -= 4 // of the part's length
		}
		if room <= 0 {
			if err := a.send(inner); err != nil {
				return err
			}
			continue
		}
		n := min(room, len(p))
		if a.length == bhttp.Indeterminate {
			a.buf = bhttp.AppendVarint(a.buf, uint64(n))
		}
		a.buf, p = append(a.buf, p[:n]...), p[n:]
	}
	return nil
}

// send seals the chunk that was filled and sends it. Only a final chunk may be
// empty.
func (a *answerWriter) send(at place) error {
	plaintext := a.buf[a.start+lengthSize:]
	if len(plaintext) == 0 && at == inner {
		return nil
	}
	if a.sum != nil {
		a.sum.Write(plaintext)
	}
	sealed, err := a.outlet.put(a.buf[a.start:], at)
	a.start, a.buf = 0, a.buf[:lengthSize]
	if err != nil || len(sealed) == 0 {
		return err
	}
	a.begin()
	_, err = a.w.Write(sealed)
	return err
}

// begin sends what stands before the chunks, once.
func (a *answerWriter) begin() {
	if !a.begun {
		a.begun = true
		a.w.Header().Set("Content-Type", a.kind)
		_, _ = a.w.Write(a.prefix) // the next write fails too
	}
}

// trailers takes the trailers out of the header: those with net/http's prefix,
// and those announced before the content.
func (a *answerWriter) trailers() http.Header {
	announced, prefixed := a.header["Trailer"], false
	for name := range a.header {
		prefixed = prefixed || strings.HasPrefix(name, http.TrailerPrefix)
	}
	if announced == nil && !prefixed {
		return nil
	}
	trailer := http.Header{}
	for name, values := range a.header {
		if short, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			trailer[http.CanonicalHeaderKey(short)] = values
			delete(a.header, name)
		}
	}
	for _, list := range announced {
		for name := range strings.SplitSeq(list, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if values, ok := a.header[name]; ok {
				trailer[name] = values
				delete(a.header, name)
			}
		}
	}
	return trailer
}

// finish ends the answer after the app has returned, with a receipt where one is
// wanted; the request's body is read to its end for that.
func (a *answerWriter) finish() error {
	defer a.release()
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.length >= 0 && !a.noContent && a.written != a.length {
		return fmt.Errorf("answering: %w", io.ErrUnexpectedEOF)
	}
	trailer := a.trailers()
	if !a.streaming {
		return a.whole(trailer)
	}
	if a.length == bhttp.Indeterminate {
		a.buf = append(a.buf, 0)
	}
	if len(a.buf)-a.start > lengthSize+maxPlaintext-bhttp.MaxTrailers {
		if err := a.send(inner); err != nil {
			return err
		}
	}
	var err error
	if a.buf, err = bhttp.AppendTrailers(a.buf, trailer, a.length); err != nil {
		return err
	}
	return a.end()
}

// kept is how many bytes of an answer in one piece wait for its end.
func (a *answerWriter) kept() int {
	if c, ok := a.outlet.(oneOffOutlet); ok {
		return c.Kept()
	}
	return 0
}

// release gives the buffer back. It holds ciphertext, and of plaintext no more
// than the app's memory does.
func (a *answerWriter) release() {
	*a.lent, a.buf = a.buf[:0], nil // not what buf was before a large head: that holds plaintext
	a.host.answers.Put(a.lent)
}

// whole is a small answer: one chunk, padded.
func (a *answerWriter) whole(trailer http.Header) error {
	length := int64(len(a.buf) - headRoom)
	err := a.encode(length, a.buf[headRoom:])
	if err != nil {
		return err
	}
	if a.buf, err = bhttp.AppendTrailers(a.buf, trailer, length); err != nil {
		return err
	}
	a.buf = pad(a.buf, a.start+lengthSize)
	if a.x != nil && a.sum == nil {
		a.w.Header().Set("Content-Length", strconv.Itoa(answerPrefix+len(a.buf)-a.start+tagSize))
	}
	return a.end()
}

// end sends the final chunk: what is left, or after it the receipt.
func (a *answerWriter) end() error {
	if a.sum == nil {
		return a.send(final)
	}
	if err := a.send(inner); err != nil {
		return err
	}
	for !a.x.whole() { // an app need not read, and may close, the request
		if _, err := a.x.source.Next(); err != nil {
			return fmt.Errorf("reading the request for its receipt: %w", err)
		}
	}
	said, answered := wire.Digest(a.x.said.Sum(nil)), wire.Digest(a.sum.Sum(nil))
	at := a.x.time()
	head, err := a.host.reached(a.x.standing, at)
	if err != nil {
		return err
	}
	receipt, err := makeReceipt(a.host.key, a.x.standing.chain, receiptFields(a.x.header, said, answered, a.host.id, at, head))
	if err != nil {
		return err
	}
	a.sum = nil
	a.buf = append(a.buf, receipt...)
	return a.send(final)
}
