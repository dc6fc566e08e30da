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

	"github.com/cohort-tee/cohort/internal/wire"
)

// answerWriter is the [http.ResponseWriter] of a request in a session. What an
// app writes is kept until it is more than 16 KiB, or flushed, or all: a small
// answer is one chunk of known length. It is used by one goroutine at a time.
type answerWriter struct {
	w         http.ResponseWriter
	x         *inbound
	prefix    [answerPrefix]byte
	sealer    *sealer
	sum       hash.Hash // of the answer's plaintext; nil when no receipt is wanted
	header    http.Header
	status    int   // 0 before WriteHeader
	length    int64 // of the content, if the app said it
	written   int64 // content
	noContent bool  // the answer to a HEAD
	streaming bool
	buf       []byte // content while not streaming, then the chunk that is filled
}

func newAnswerWriter(w http.ResponseWriter, x *inbound) (*answerWriter, error) {
	a := &answerWriter{w: w, x: x, header: make(http.Header, 4), length: indeterminate}
	if x.said != nil {
		a.sum = sha256.New()
	}
	var err error
	a.prefix, a.sealer, err = x.answerSealer()
	return a, err
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
	if !a.streaming && len(a.buf)+len(p) <= maxSmall {
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
	if err := a.send(inner); err != nil {
		return err
	}
	return http.NewResponseController(a.w).Flush()
}

// encode appends kind and head, its content of a length, to b.
func (a *answerWriter) encode(b []byte, length int64, sample []byte) ([]byte, error) {
	if _, ok := a.header["Content-Type"]; !ok && len(sample) > 0 && a.header.Get("Content-Encoding") == "" {
		a.header.Set("Content-Type", http.DetectContentType(sample))
	}
	b = append(b, kindResponse)
	return appendResponse(b, head{status: a.status, fields: a.header, length: length})
}

// stream begins to stream: the head, and the content so far, go into the first
// chunk. Next is what is written next.
func (a *answerWriter) stream(next []byte) error {
	if a.streaming {
		return nil
	}
	a.w.Header().Set("X-Accel-Buffering", "no") // nginx holds streamed answers without it
	a.streaming = true
	content, sample := a.buf, a.buf
	if len(sample) == 0 {
		sample = next
	}
	length := a.length
	if a.noContent {
		length = 0
	}
	early := a.trailers()
	defer func() { maps.Copy(a.header, early) }()
	var err error
	a.buf, err = a.encode(make([]byte, lengthSize, lengthSize+maxPlaintext+tagSize), length, sample)
	if err == nil && len(a.buf) > lengthSize+maxPlaintext/2 {
		err = wire.Refuse(wire.TooLarge, "answer: head: size in bytes", len(a.buf), maxPlaintext/2)
	}
	if err != nil {
		return err
	}
	return a.add(content)
}

// add puts content into chunks and sends those that are full.
func (a *answerWriter) add(p []byte) error {
	for len(p) > 0 {
		room := lengthSize + maxPlaintext - len(a.buf)
		if a.length == indeterminate {
			room -= 4 // of the part's length
		}
		if room <= 0 {
			if err := a.send(inner); err != nil {
				return err
			}
			continue
		}
		n := min(room, len(p))
		if a.length == indeterminate {
			a.buf = appendVarint(a.buf, uint64(n))
		}
		a.buf, p = append(a.buf, p[:n]...), p[n:]
	}
	return nil
}

// send seals the chunk that was filled and sends it. Only a final chunk may be
// empty.
func (a *answerWriter) send(at place) error {
	if len(a.buf) == lengthSize && at == inner {
		return nil
	}
	if a.sum != nil {
		a.sum.Write(a.buf[lengthSize:])
	}
	a.begin()
	_, err := a.w.Write(a.sealer.seal(a.buf, at))
	a.buf = a.buf[:lengthSize]
	return err
}

// begin sends what stands before the chunks, once.
func (a *answerWriter) begin() {
	if a.sealer.counter == (counter{}) {
		a.w.Header().Set("Content-Type", wire.TypeAnswer)
		_, _ = a.w.Write(a.prefix[:]) // the next write fails too
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
	var err error
	if a.length == indeterminate && !a.noContent {
		a.buf = append(a.buf, 0)
	}
	length := a.length
	if a.noContent {
		length = 0
	}
	if len(a.buf) > lengthSize+maxPlaintext-maxTrailers {
		if err := a.send(inner); err != nil {
			return err
		}
	}
	if a.buf, err = appendEnd(a.buf, trailer, length); err != nil {
		return err
	}
	return a.end()
}

// whole is a small answer: one chunk, padded.
func (a *answerWriter) whole(trailer http.Header) error {
	content := a.buf
	b, err := a.encode(make([]byte, lengthSize, 512+len(content)), int64(len(content)), content)
	if err != nil {
		return err
	}
	if b, err = appendEnd(append(b, content...), trailer, int64(len(content))); err != nil {
		return err
	}
	if len(b) > lengthSize+maxPlaintext {
		return wire.Refuse(wire.TooLarge, "answer: head: size in bytes", len(b), maxPlaintext)
	}
	a.buf = pad(b, lengthSize)
	if a.sum == nil {
		a.w.Header().Set("Content-Length", strconv.Itoa(answerPrefix+len(a.buf)+tagSize))
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
	for _, err := a.x.source.next(); err != io.EOF; _, err = a.x.source.next() {
		if err != nil {
			return fmt.Errorf("reading the request for its receipt: %w", err)
		}
	}
	said, answered := wire.Digest(a.x.said.Sum(nil)), wire.Digest(a.sum.Sum(nil))
	h := a.x.host
	receipt, err := makeReceipt(h.key, a.x.standing.chain, receiptFields(a.x.header, said, answered, h.id))
	if err != nil {
		return err
	}
	a.sum = nil
	a.buf = append(a.buf, receipt...)
	return a.send(final)
}
