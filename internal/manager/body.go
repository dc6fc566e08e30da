package manager

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// body is a request body on its way to a unit. It keeps the first maxReplay bytes that it has
// passed on, so that a request that has not passed on more can be sent again over another
// connection or to another unit. It never keeps the whole of a large body.
type body struct {
	source   io.Reader
	deadline func(time.Time) error // sets the read deadline of the client's connection while the handler runs

	mu    sync.Mutex
	begin []byte // guarded by mu: the first bytes read
	read  int    // guarded by mu: bytes read from source
	end   error  // guarded by mu: error of the last read of source
}

// reader returns a reader that starts at the first byte.
func (b *body) reader() io.ReadCloser { return &bodyReader{body: b} }

// whole reports whether all bytes read so far are still buffered.
func (b *body) whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.begin) == b.read
}

// ended reports whether the body was read to its end, and no transport is reading from it.
func (b *body) ended() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.end == io.EOF
}

// bodyReader reads a body from its start. Of several readers only the last one is used, but a
// transport may still be reading from an earlier one: the bytes it reads are not lost.
type bodyReader struct {
	body   *body
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
	case r.offset < len(b.begin):
		n := copy(p, b.begin[r.offset:])
		r.offset += n
		return n, nil
	case r.offset < b.read:
		return 0, io.ErrUnexpectedEOF // another reader consumed these bytes
	case b.end != nil:
		return 0, b.end
	}
	n, err := b.source.Read(p)
	b.end = err
	if len(b.begin) == b.read && b.read+n <= maxReplay {
		b.begin = append(b.begin, p[:n]...)
	}
	b.read += n
	r.offset += n
	return n, err
}

// Close does not wait for a running read.
func (r *bodyReader) Close() error {
	r.closed.Store(true)
	return nil
}

// release ends all reading, since net/http fails when a connection is used after its handler.
// It interrupts a transport's running read, which would otherwise keep the client's connection
// open.
func (b *body) release() {
	if !b.mu.TryLock() {
		_ = b.deadline(time.Unix(1, 0))
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	b.end = http.ErrBodyReadAfterClose
}
