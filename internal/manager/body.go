package manager

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// requestBody is the body of a request that is sent to a unit. It buffers up to the first
// maxReplay bytes, so that the gateway can send the request again, over another connection or to
// another unit, while no more bytes have been read. It never buffers the whole of a large body.
type requestBody struct {
	source   io.Reader
	deadline func(time.Time) error // sets the read deadline of the client's connection; valid while the handler runs

	mu       sync.Mutex
	prefix   []byte // guarded by mu: the first bytes read
	consumed int    // guarded by mu: bytes read from source
	readErr  error  // guarded by mu: error of the last read of source
}

// newReader returns a reader that starts at the first byte.
func (b *requestBody) newReader() io.ReadCloser { return &bodyReader{body: b} }

// replayable reports whether all bytes read so far are still buffered.
func (b *requestBody) replayable() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.prefix) == b.consumed
}

// atEOF reports whether the body was read to its end, and no transport is reading from it.
func (b *requestBody) atEOF() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.readErr == io.EOF
}

// bodyReader reads a body from its start. Only the newest reader is in use, but a transport may
// still read from an earlier one: requestBody buffers those bytes too.
type bodyReader struct {
	body   *requestBody
	offset int
	closed atomic.Bool
}

func (r *bodyReader) Read(p []byte) (int, error) {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r.closed.Load():
		return 0, http.ErrBodyReadAfterClose
	case r.offset < len(b.prefix):
		n := copy(p, b.prefix[r.offset:])
		r.offset += n
		return n, nil
	case r.offset < b.consumed:
		return 0, io.ErrUnexpectedEOF // another reader consumed these bytes
	case b.readErr != nil:
		return 0, b.readErr
	}
	n, err := b.source.Read(p)
	b.readErr = err
	if len(b.prefix) == b.consumed && b.consumed+n <= maxReplay {
		b.prefix = append(b.prefix, p[:n]...)
	}
	b.consumed += n
	r.offset += n
	return n, err
}

// Close does not wait for a running read.
func (r *bodyReader) Close() error {
	r.closed.Store(true)
	return nil
}

// detach ends all reading, since net/http fails if a body is read after its handler has
// returned. It interrupts a running read of a transport, which would otherwise keep the client's
// connection open.
func (b *requestBody) detach() {
	if !b.mu.TryLock() {
		_ = b.deadline(time.Unix(1, 0))
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	b.readErr = http.ErrBodyReadAfterClose
}
