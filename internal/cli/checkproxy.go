package cli

import (
	"bytes"
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync/atomic"

	"github.com/cohort-tee/cohort/internal/wire"
)

// middleman stands between a client and the gateway, as anybody can. It may
// change the requests and the answers of sessions, and reads of them what
// everybody can read.
type middleman struct {
	url    string
	server *http.Server
	change atomic.Pointer[change]
	target atomic.Pointer[wire.UnitID] // that the newest request is bound to
}

// change makes other bytes of a sealed request or answer. Nil changes nothing.
type change struct{ request, answer func([]byte) []byte }

func newMiddleman(gateway string) (*middleman, error) {
	to, err := url.Parse(gateway)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m := &middleman{url: "http://" + listener.Addr().String()}
	m.change.Store(&change{})
	m.server = &http.Server{ReadHeaderTimeout: stepTime, Handler: &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(to); m.request(r.Out) },
		ModifyResponse: m.answer,
		FlushInterval:  -1,
		ErrorLog:       log.New(io.Discard, "", 0),
	}}
	go m.server.Serve(listener) // ends by close
	return m, nil
}

func (m *middleman) close() { _ = m.server.Close() }

// request changes what the gateway gets.
func (m *middleman) request(r *http.Request) {
	if r.URL.Path != wire.PathRequest || r.ContentLength < 0 {
		return
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client is gone
	}
	if h, err := wire.ParseHeader(b); err == nil {
		m.target.Store(&h.Target)
	}
	if f := m.change.Load().request; f != nil {
		b = f(b)
	}
	r.Body = io.NopCloser(bytes.NewReader(b))
}

// answer changes what the client gets.
func (m *middleman) answer(r *http.Response) error {
	f := m.change.Load().answer
	if f == nil || r.Request.URL.Path != wire.PathRequest {
		return nil
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	b = f(b)
	r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	r.Header.Set("Content-Length", strconv.Itoa(len(b)))
	return r.Body.Close()
}

// flip changes one bit: of the byte at i of n equal steps.
func flip(i, n int) func([]byte) []byte {
	return func(b []byte) []byte {
		if len(b) > 0 {
			b[len(b)*i/n] ^= 1
		}
		return b
	}
}

// half cuts the rest off.
func half(b []byte) []byte { return b[:len(b)/2] }

// between opens a channel through a middleman; close ends both.
func (c checker) between(ctx context.Context) (m *middleman, s *session, close func(), err error) {
	if m, err = newMiddleman(c.cluster.Gateway); err != nil {
		return nil, nil, nil, err
	}
	if s, err = c.open(ctx, m.url); err != nil {
		m.close()
		return nil, nil, nil, err
	}
	return m, s, func() { s.close(); m.close() }, nil
}
