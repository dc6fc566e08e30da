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

// Pace limits the time that a server waits for its peers, for HTTP/1.1 and for each stream of
// HTTP/2. Each read of a request's body and each write of its response has its own time limit.
// So a request as a whole may take long, but ends when no bytes are transferred.
type Pace struct {
	Read  time.Duration // for the next bytes of a body
	Write time.Duration // for the peer to accept the next bytes of a response
	Rest  time.Duration // for the unread rest of a body, after the handler returned
}

// HTTP2 returns limits for HTTP/2 connections that a handler cannot enforce: they detect a peer
// that accepts no bytes, or that disappeared without closing the connection.
func (p Pace) HTTP2() *http.HTTP2Config {
	return &http.HTTP2Config{MaxConcurrentStreams: maxStreams, WriteByteTimeout: p.Write, SendPingTimeout: p.Write}
}

// maxStreams is the maximum number of streams of one HTTP/2 connection, the default of net/http.
// A client that needs more opens a second connection.
const maxStreams = 250

// Handler returns h with the limits of p. If h sets a read deadline with
// [http.ResponseController], that deadline replaces the limit for reads until h clears it. No
// limit applies to a hijacked connection.
func (p Pace) Handler(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		x := &pacedResponse{ResponseWriter: w, pace: p, control: http.NewResponseController(w)}
		x.writes = newTimeLimit(x.interruptWrite)
		if r.ProtoMajor == 1 {
			_ = x.control.SetWriteDeadline(time.Time{}) // clears the deadline of the previous request on this connection
		}
		defer x.finish(r.ProtoMajor)
		if r.Body != nil && r.Body != http.NoBody {
			x.body, x.reads = r.Body, newTimeLimit(x.interruptRead)
			r = r.WithContext(r.Context()) // the server keeps using the original request
			r.Body = pacedBody{x}
		}
		h.ServeHTTP(x, r)
	})
}

// pacedResponse is a response, and the body of its request, with the limits of a Pace.
type pacedResponse struct {
	http.ResponseWriter
	pace    Pace
	control *http.ResponseController
	body    io.ReadCloser // nil: none
	reads   timeLimit     // zero without a body
	writes  timeLimit
	ended   atomic.Bool // whether the body was read to its end

	mu           sync.Mutex
	finished     bool // guarded by mu: the handler has returned or hijacked the connection
	handlerReads bool // guarded by mu: the handler has set a read deadline
}

// timeLimit is a time limit for an operation that one goroutine at a time performs.
type timeLimit struct{ timer *time.Timer }

// newTimeLimit returns a limit that calls late when it is exceeded. It is not yet running.
func newTimeLimit(late func()) timeLimit {
	l := timeLimit{time.AfterFunc(time.Hour, late)}
	l.timer.Stop()
	return l
}

// within starts the limit. The caller ends it with end.
func (l timeLimit) within(d time.Duration) (end func() bool) {
	l.timer.Reset(d)
	return l.timer.Stop
}

// past is a deadline in the past.
var past = time.Unix(1, 0)

// interruptRead interrupts a read that takes too long.
func (x *pacedResponse) interruptRead() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.finished && !x.handlerReads {
		_ = x.control.SetReadDeadline(past) // fails only for a server without read deadlines, which has limits of its own
	}
}

// interruptWrite interrupts a write that takes too long. It also interrupts reads, since the
// server may read the rest of the request before the response starts.
func (x *pacedResponse) interruptWrite() {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.finished {
		_ = x.control.SetReadDeadline(past) // as above
		_ = x.control.SetWriteDeadline(past)
	}
}

// finish sets deadlines for the work of the server after the handler: to write the end of the
// response, and to read the rest of the request. With HTTP/2 there is no rest to read.
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

// pacedBody is the body of the request. It does not implement [io.WriterTo], which would read
// without a limit.
type pacedBody struct{ x *pacedResponse }

// Read reads bytes that arrive within the limit.
func (b pacedBody) Read(p []byte) (int, error) {
	defer b.x.reads.within(b.x.pace.Read)()
	n, err := b.x.body.Read(p)
	if err == io.EOF {
		b.x.ended.Store(true)
	}
	return n, err
}

// Close closes the body. The server may read the rest of the body to close it.
func (b pacedBody) Close() error {
	defer b.x.reads.within(b.x.pace.Rest)()
	return b.x.body.Close()
}

// Write writes p, which the peer must accept within the limit.
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

// FlushError sends buffered bytes, within the limit.
func (x *pacedResponse) FlushError() error {
	defer x.writes.within(x.pace.Write)()
	return x.control.Flush()
}

// SetReadDeadline sets the handler's own deadline for reads in place of the limit, until at is
// zero.
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

// Unwrap returns the wrapped writer for [http.ResponseController].
func (x *pacedResponse) Unwrap() http.ResponseWriter { return x.ResponseWriter }
