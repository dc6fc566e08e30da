package manager

import (
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// body is the body of a request on its way to a unit. It keeps the first bytes
// it has passed on, so that they can go to another connection or unit as long
// as there are no more than maxReplay; never the whole of a large one.
type body struct {
	source   io.Reader
	deadline func(time.Time) error // of reading from the client's connection, while the handler runs

	mu    sync.Mutex
	begin []byte // guarded by mu: the first bytes read
	read  int    // guarded by mu: bytes read from source
	end   error  // guarded by mu: what source ended with
}

// reader begins again at the first byte.
func (b *body) reader() io.ReadCloser { return &bodyReader{body: b} }

// whole reports whether everything read so far is still there.
func (b *body) whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.begin) == b.read
}

// ended reports whether the client's connection is at the end of the body, and no
// transport reads from it.
func (b *body) ended() bool {
	if !b.mu.TryLock() {
		return false
	}
	defer b.mu.Unlock()
	return b.end == io.EOF
}

// bodyReader is one way through a body. Of several only the last is used, but
// a transport may still be reading an earlier one: its bytes are not lost.
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
		return 0, io.ErrUnexpectedEOF // another reader took what is gone
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

// Close does not wait for a read under way.
func (r *bodyReader) Close() error {
	r.closed.Store(true)
	return nil
}

// release lets nobody read from now on: net/http breaks when the connection is
// touched after its handler. A read of a transport that is still under way would
// keep the client's connection from ending, so it is cut short.
func (b *body) release() {
	if !b.mu.TryLock() {
		_ = b.deadline(time.Unix(1, 0))
		b.mu.Lock()
	}
	defer b.mu.Unlock()
	b.end = http.ErrBodyReadAfterClose
}
