package limit

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Pace bounds how long a server waits for its peers, over HTTP/1.1 and for each
// stream of HTTP/2 alike: each read of a request's body and each write of its
// response has a time limit of its own. So a request may take long as a whole,
// and ends when nothing moves.
type Pace struct {
	Read  time.Duration // for the next bytes of a body
	Write time.Duration // for the peer to take the next bytes of a response
	Rest  time.Duration // for the unread rest of a body, after the handler
}

// HTTP2 are limits of a server for what no handler sees of an HTTP/2 connection:
// a peer that takes no bytes of it, or is gone without a word.
func (p Pace) HTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: p.Write, SendPingTimeout: p.Write}
}

// maxStreams are those of one HTTP/2 connection, the default of net/http. A client
// that wants more makes another.
const maxStreams = 250

// Handler is h at this pace. A handler that sets a read deadline with
// [http.ResponseController] decides about reads itself, until it sets none. What
// it hijacks is its own.
func (p Pace) Handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := &pacedResponse{ResponseWriter: w, pace: p, control: http.NewResponseController(w)}
		x.writes = newTimeLimit(x.interruptWrite)
		if r.ProtoMajor == 1 {
			_ = x.control.SetWriteDeadline(time.Time{}) // of the request before, on this connection
		}
		defer x.finish(r.ProtoMajor)
		if r.Body != nil && r.Body != http.NoBody {
			x.body, x.reads = r.Body, newTimeLimit(x.interruptRead)
			r = r.WithContext(r.Context()) // the server goes on looking at its own
			r.Body = pacedBody{x}
		}
		h.ServeHTTP(x, r)
	})
}

// pacedResponse is a response, and the body of its request, at a pace.
type pacedResponse struct {
	http.ResponseWriter
	pace    Pace
	control *http.ResponseController
	body    io.ReadCloser // nil: none
	reads   timeLimit     // none without a body
	writes  timeLimit
	ended   atomic.Bool // the body was read to its end

	mu           sync.Mutex
	finished     bool // guarded by mu: the handler has ended, or took the connection
	handlerReads bool // guarded by mu: the handler decides about reads
}

// timeLimit is the time limit of what one goroutine at a time does.
type timeLimit struct{ timer *time.Timer }

// newTimeLimit is one after which late is called. It has not begun.
func newTimeLimit(late func()) timeLimit {
	l := timeLimit{time.AfterFunc(time.Hour, late)}
	l.timer.Stop()
	return l
}

// within begins the limit; the caller ends it.
func (l timeLimit) within(d time.Duration) (end func() bool) {
	l.timer.Reset(d)
	return l.timer.Stop
}

// past is a deadline that is over.
var past = time.Unix(1, 0)

// interruptRead ends a read that takes too long.
func (x *pacedResponse) interruptRead() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.finished && !x.handlerReads {
		_ = x.control.SetReadDeadline(past) // a server that has none has its own limits
	}
}

// interruptWrite ends a write that takes too long. A server may also be reading in it: what
// is left of the request, before the response begins.
func (x *pacedResponse) interruptWrite() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.finished {
		_ = x.control.SetReadDeadline(past) // as above
		_ = x.control.SetWriteDeadline(past)
	}
}

// finish leaves the server time for what comes after the handler: the end of the
// response, and what is left of the request. HTTP/2 leaves nothing to be read.
func (x *pacedResponse) finish(major int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.finished {
		return
	}
	x.finished = true
	now := time.Now()
	_ = x.control.SetWriteDeadline(now.Add(x.pace.Write)) // as above
	if x.body != nil && !x.ended.Load() && major == 1 {
		_ = x.control.SetReadDeadline(now.Add(x.pace.Rest))
	}
}

// pacedBody is the body of the request. It is no [io.WriterTo], which would read
// without a limit.
type pacedBody struct{ x *pacedResponse }

// Read reads what comes within the limit.
func (b pacedBody) Read(p []byte) (int, error) {
	defer b.x.reads.within(b.x.pace.Read)()
	n, err := b.x.body.Read(p)
	if err == io.EOF {
		b.x.ended.Store(true)
	}
	return n, err
}

// Close closes the body, for which a server may read what is left.
func (b pacedBody) Close() error {
	defer b.x.reads.within(b.x.pace.Rest)()
	return b.x.body.Close()
}

// Write writes what the peer takes within the limit.
func (x *pacedResponse) Write(p []byte) (int, error) {
	defer x.writes.within(x.pace.Write)()
	return x.ResponseWriter.Write(p)
}

// WriteString is Write without a copy of s.
func (x *pacedResponse) WriteString(s string) (int, error) {
	defer x.writes.within(x.pace.Write)()
	return io.WriteString(x.ResponseWriter, s)
}

// Flush implements [http.Flusher].
func (x *pacedResponse) Flush() { _ = x.FlushError() }

// FlushError sends what was written, within the limit.
func (x *pacedResponse) FlushError() error {
	defer x.writes.within(x.pace.Write)()
	return x.control.Flush()
}

// SetReadDeadline lets the handler decide about reads, until it sets none.
func (x *pacedResponse) SetReadDeadline(at time.Time) error {
	x.mu.Lock()
	x.handlerReads = !at.IsZero()
	x.mu.Unlock()
	return x.control.SetReadDeadline(at)
}

// Hijack implements [http.Hijacker].
func (x *pacedResponse) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := x.control.Hijack()
	if err == nil {
		x.mu.Lock()
		x.finished = true
		x.mu.Unlock()
	}
	return conn, buffered, err
}

// Unwrap implements the interface of [http.ResponseController].
func (x *pacedResponse) Unwrap() http.ResponseWriter { return x.ResponseWriter }
