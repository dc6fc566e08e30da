package api

import (
	"bytes"
	"net/http"
)

// Buffered returns a handler that completes each page in memory before it sends the first
// byte. Metrics limit the number of concurrent requests, and a peer that reads slowly must not
// occupy one of them.
func Buffered(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := page{header: w.Header(), status: http.StatusOK}
		h.ServeHTTP(&p, r)
		w.WriteHeader(p.status)
		_, _ = w.Write(p.body.Bytes()) // the peer may be gone
	})
}

// page is a buffered response.
type page struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *page) Header() http.Header         { return p.header }
func (p *page) WriteHeader(status int)      { p.status = status }
func (p *page) Write(b []byte) (int, error) { return p.body.Write(b) }
