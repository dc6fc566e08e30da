package channelhttp

import (
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/wire"
)

// responseWriter is the [http.ResponseWriter] of a request in a session or of a one-off
// request. It buffers content until the app has written more than 16 KiB, flushes or ends, so
// that a small response is one chunk of known length. Only one goroutine may use it at a time.
type responseWriter struct {
	w         http.ResponseWriter // the outer response
	responder *channel.Responder  // seals the inner response
	header    http.Header
	status    int   // 0 before WriteHeader
	length    int64 // length of the content if the app set it; otherwise bhttp.Indeterminate
	written   int64 // bytes of content written so far
	noContent bool  // the response has no content: to HEAD, or with status 204 or 304
	streaming bool
}

// newResponseWriter makes the writer of the response to a request in a session.
func newResponseWriter(w http.ResponseWriter, x *channel.ServerRequest) (*responseWriter, error) {
	r, err := x.Responder(w)
	if err != nil {
		return nil, err
	}
	return newWriterOf(w, wire.TypeResponse, r), nil
}

func newWriterOf(w http.ResponseWriter, kind string, r *channel.Responder) *responseWriter {
	w.Header().Set("Content-Type", kind)
	return &responseWriter{w: w, responder: r, header: make(http.Header, 4), length: bhttp.Indeterminate}
}

// Header returns the header of the response.
func (a *responseWriter) Header() http.Header { return a.header }

// WriteHeader sets the status. It ignores informational responses (1xx).
func (a *responseWriter) WriteHeader(status int) {
	if a.status != 0 || status < 200 {
		return
	}
	a.status = status
	if given := a.header.Get("Content-Length"); given != "" {
		if n, err := strconv.ParseInt(given, 10, 62); err == nil && n >= 0 {
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
func (a *responseWriter) Write(p []byte) (int, error) {
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
	if !a.streaming && len(a.responder.BufferedContent())+len(p) <= channel.MaxSmall {
		a.responder.BufferContent(p)
		return len(p), nil
	}
	if err := a.stream(p); err != nil {
		return 0, err
	}
	return a.responder.Write(p)
}

// WriteString writes s as content. It implements [io.StringWriter].
func (a *responseWriter) WriteString(s string) (int, error) { return a.Write([]byte(s)) }

// Flush sends all content written so far.
func (a *responseWriter) Flush() { _ = a.FlushError() }

// FlushError sends all content written so far.
func (a *responseWriter) FlushError() error {
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if err := a.stream(nil); err != nil {
		return err
	}
	if err := a.responder.Flush(); err != nil || !a.responder.Begun() {
		return err
	}
	return http.NewResponseController(a.w).Flush()
}

// responseHead returns the head of the response. If the app has set no content type,
// responseHead detects it in a sample of the content.
func (a *responseWriter) responseHead(sample []byte) bhttp.Head {
	if _, ok := a.header["Content-Type"]; !ok && len(sample) > 0 && a.header.Get("Content-Encoding") == "" {
		a.header.Set("Content-Type", http.DetectContentType(sample))
	}
	return bhttp.Head{Status: a.status, Fields: a.header, Length: a.length}
}

// stream begins a streamed response: its first chunk contains the head and the buffered
// content. next is the content that follows.
func (a *responseWriter) stream(next []byte) error {
	if a.streaming {
		return nil
	}
	a.w.Header().Set("X-Accel-Buffering", "no") // without it nginx buffers streamed responses
	a.streaming = true
	sample := a.responder.BufferedContent()
	if len(sample) == 0 {
		sample = next
	}
	if a.noContent {
		a.length = 0
	}
	early := a.trailers()
	defer maps.Copy(a.header, early)
	return a.responder.Begin(a.responseHead(sample))
}

// trailers removes the trailers from the header and returns them: the fields with net/http's
// prefix, and the fields that the Trailer field announces.
func (a *responseWriter) trailers() http.Header {
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

// finish ends the response after the app has returned. If the client wants a receipt, finish
// reads the request's body to its end and adds the receipt.
func (a *responseWriter) finish() error {
	defer a.responder.Release()
	if a.status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.length >= 0 && !a.noContent && a.written != a.length {
		return fmt.Errorf("writing the response: %w", io.ErrUnexpectedEOF)
	}
	trailer := a.trailers()
	if a.streaming {
		return a.responder.FinishStream(trailer)
	}
	size, err := a.responder.Whole(a.responseHead(a.responder.BufferedContent()), trailer)
	if err != nil {
		return err
	}
	if size > 0 {
		a.w.Header().Set("Content-Length", strconv.Itoa(size))
	}
	return a.responder.Finish()
}
