package manager

import (
	"errors"
	"io"
	"net/http"
	"testing"
	"time"
)

// slow is a client's connection that returns a byte when its deadline passes.
type slow struct {
	reading, over chan struct{}
	released      bool
	t             *testing.T
}

func (s *slow) Read(p []byte) (int, error) {
	close(s.reading)
	<-s.over
	p[0] = 'x'
	return 1, nil
}

func (s *slow) deadline(at time.Time) error {
	if s.released {
		s.t.Error("the connection was touched after its handler")
	}
	if at.Before(time.Now()) {
		close(s.over)
	}
	return nil
}

// TestReleasedBody: when the handler ends, it does not wait for a transport that still reads the
// body. The transport does not touch the client's connection any more, even though its last read
// succeeded.
func TestReleasedBody(t *testing.T) {
	s := &slow{reading: make(chan struct{}), over: make(chan struct{}), t: t}
	b := &requestBody{source: s, deadline: s.deadline}
	r := b.newReader()
	done := make(chan error)
	go func() {
		_, err := r.Read(make([]byte, 8))
		done <- err
	}()
	<-s.reading
	b.detach()
	s.released = true
	if err := <-done; err != nil {
		t.Errorf("the read under way: got %v, want a byte", err)
	}
	if n, err := io.Copy(io.Discard, r); n != 0 || !errors.Is(err, http.ErrBodyReadAfterClose) {
		t.Errorf("the next read: got %d bytes and %v, want %v", n, err, http.ErrBodyReadAfterClose)
	}
}
