package client

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
)

const (
	maxKeptBody      = 1 << 20  // largest request body kept in memory to be sent again
	maxWholeResponse = 64 << 10 // longest response that is read whole before it is returned
)

// isSafe reports whether the method of a request is safe (RFC 9110, section 9.2.1), so
// that the request may be executed any number of times.
func isSafe(r *http.Request) bool {
	switch r.Method {
	case "", http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// hasIdempotencyKey reports whether a request carries an Idempotency-Key: with it the
// caller promises that the service executes the request once, however often it arrives.
func hasIdempotencyKey(r *http.Request) bool { return r.Header.Get("Idempotency-Key") != "" }

// body provides a request's body to each attempt.
type body struct {
	reopen func() (io.ReadCloser, error) // nil when the body can be read only once
	once   *onceBody                     // set when reopen is nil
}

// newBody prepares the body of a request. It keeps a body without GetBody in memory if
// the body has at most keep bytes.
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

// openBody returns the body for the next attempt.
func (b *body) openBody() (io.ReadCloser, error) {
	if b.reopen != nil {
		return b.reopen()
	}
	return b.once, nil
}

// isUnread reports whether openBody returns the body from its beginning.
func (b *body) isUnread() bool { return b.reopen != nil || !b.once.touched.Load() }

// onceBody is a body that can be read only once. It records whether it was read or closed.
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

// readWhole reads a short response of known length to its end, so that a broken
// response is detected while another attempt is still possible.
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

// responseBody calls done, which ends the attempt, when the body ends, fails or is closed.
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

// closeBody closes the body of a request, as [http.RoundTripper] demands.
func closeBody(r *http.Request) {
	if r.Body != nil {
		r.Body.Close()
	}
}
