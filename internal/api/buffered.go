package api

import (
	"bytes"
	"net/http"
)

// Buffered is a handler whose pages are made whole before the first byte is sent.
// Metrics are gathered by few requests at a time, and a peer that reads its response
// slowly must not be one of them. The page is kept in memory.
func Buffered(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p := page{header: w.Header(), status: http.StatusOK}
		h.ServeHTTP(&p, r)
		w.WriteHeader(p.status)
		_, _ = w.Write(p.body.Bytes()) // the peer may be gone
	})
}

// page is a response that is kept.
type page struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *page) Header() http.Header         { return p.header }
func (p *page) WriteHeader(status int)      { p.status = status }
func (p *page) Write(b []byte) (int, error) { return p.body.Write(b) }
