// Package fullduplex lets an HTTP/1.1 handler that forwards requests respond before it has read
// its request to the end, and keeps the connection safe: a response that starts early is the last
// one on its connection. It trusts nothing and refuses nothing.
package fullduplex

import (
	"io"
	"net/http"
	"sync/atomic"
)

// Enable permits the response to start before the end of the request, which must have a body.
// For HTTP/1.1 it must be enabled, which fails only for writers that are not the server's own. A
// response that does start early is the last one on its connection: the server of net/http panics
// at the next request if this request was not read to its end (go.dev/issue/68560), and the client
// would not learn the outcome of that next request.
func Enable(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	body := &watchedBody{ReadCloser: r.Body}
	r = r.WithContext(r.Context()) // the server keeps using the original request
	r.Body = body
	return lastOn{w, body}, r
}

// HasFailed reports whether the body of a request that Enable returned could not be read.
func HasFailed(r *http.Request) bool {
	body, ok := r.Body.(*watchedBody)
	return ok && body.failed.Load()
}

// watchedBody records whether the body was read to its end.
type watchedBody struct {
	io.ReadCloser
	ended, failed atomic.Bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.ended.Store(true)
	} else if err != nil {
		b.failed.Store(true)
	}
	return n, err
}

// lastOn is a response that closes its connection if it starts before its request was read to
// its end.
type lastOn struct {
	http.ResponseWriter
	request *watchedBody
}

func (l lastOn) WriteHeader(status int) {
	if status >= http.StatusOK && !l.request.ended.Load() {
		l.Header().Set("Connection", "close")
	}
	l.ResponseWriter.WriteHeader(status)
}

// Unwrap returns the wrapped writer for [http.ResponseController].
func (l lastOn) Unwrap() http.ResponseWriter { return l.ResponseWriter }
