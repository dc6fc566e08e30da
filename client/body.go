package client

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
)

const (
	maxKeptBody      = 1 << 20  // body of a request that is kept so that it can be sent again
	maxWholeResponse = 64 << 10 // response of known length that is read whole before it is returned
)

// isSafe reports whether a request may be executed any number of times: its
// method is safe by RFC 9110, section 9.2.1.
func isSafe(r *http.Request) bool {
	switch r.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// hasIdempotencyKey reports whether the caller promised that the service executes the
// request once, however often it is sent.
func hasIdempotencyKey(r *http.Request) bool { return r.Header.Get("Idempotency-Key") != "" }

// body provides a request's body to each attempt.
type body struct {
	reopen func() (io.ReadCloser, error) // nil when the body can be read once only
	once   *onceBody                     // where again is nil
}

// newBody prepares the body of a request. A body without GetBody of at most
// keep bytes is kept in memory.
func newBody(r *http.Request, keep int64) (*body, error) {
	switch {
	case r.Body == nil || r.Body == http.NoBody:
		return &body{reopen: func() (io.ReadCloser, error) { return r.Body, nil }}, nil
	case r.GetBody != nil:
		return &body{reopen: r.GetBody}, nil
	case keep == 0:
		return &body{once: &onceBody{ReadCloser: r.Body}}, nil
	}
	kept, err := io.ReadAll(io.LimitReader(r.Body, keep+1))
	if err != nil {
		return nil, fmt.Errorf("reading request body: %w", err)
	}
	if int64(len(kept)) > keep {
		whole := io.MultiReader(bytes.NewReader(kept), r.Body)
		return &body{once: &onceBody{ReadCloser: readCloser{whole, r.Body}}}, nil
	}
	return &body{reopen: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(kept)), nil }}, nil
}

// openBody returns the body for one more attempt.
func (b *body) openBody() (io.ReadCloser, error) {
	if b.reopen != nil {
		return b.reopen()
	}
	return b.once, nil
}

// isUnread reports whether open returns the body from its beginning.
func (b *body) isUnread() bool { return b.reopen != nil || !b.once.touched.Load() }

// onceBody records that it was read or closed.
type onceBody struct {
	io.ReadCloser
	touched atomic.Bool
}

func (b *onceBody) Read(p []byte) (int, error) {
	b.touched.Store(true)
	return b.ReadCloser.Read(p)
}

func (b *onceBody) Close() error {
	b.touched.Store(true)
	return b.ReadCloser.Close()
}

type readCloser struct {
	io.Reader
	io.Closer
}

// readWhole reads a short response of known length to its end, so that one that
// breaks is noticed while another attempt is possible.
func readWhole(response *http.Response) error {
	if response.ContentLength <= 0 || response.ContentLength > maxWholeResponse || response.Body == http.NoBody {
		return nil
	}
	whole, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil {
		return fmt.Errorf("reading response: %w", err)
	}
	response.Body = io.NopCloser(bytes.NewReader(whole))
	return nil
}

// responseBody ends its attempt's context when the response was read or closed.
type responseBody struct {
	io.ReadCloser
	done func()
}

func (b *responseBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil {
		b.done()
	}
	return n, err
}

func (b *responseBody) Close() error {
	err := b.ReadCloser.Close()
	b.done()
	return err
}
