package check

import (
	"bytes"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/cohort-tee/cohort/internal/wire"
)

// TamperingProxy is a proxy between a client and the gateway, which any host can operate. It
// changes the requests and responses of sessions and one-off requests, and reads their
// unencrypted header.
type TamperingProxy struct {
	URL    string
	server *http.Server
	served sync.WaitGroup
	Way    atomic.Pointer[Change]
	Target atomic.Pointer[wire.UnitID] // unit that the newest request is bound to
}

// Change modifies the bytes of a sealed request and of a sealed response; nil leaves them
// unchanged.
type Change struct{ Request, Response func([]byte) []byte }

// NewTamperingProxy starts a proxy to the gateway at a URL. At first it changes nothing.
func NewTamperingProxy(gateway string) (*TamperingProxy, error) {
	to, err := url.Parse(gateway)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	m := &TamperingProxy{URL: "http://" + listener.Addr().String()}
	m.Way.Store(&Change{})
	m.server = &http.Server{ReadHeaderTimeout: StepTime, Handler: &httputil.ReverseProxy{
		Rewrite:        func(r *httputil.ProxyRequest) { r.SetURL(to); m.request(r.Out) },
		ModifyResponse: m.changeResponse, FlushInterval: -1, ErrorLog: log.New(io.Discard, "", 0),
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, // some checks use a unit as the gateway
	}}
	m.served.Go(func() { _ = m.server.Serve(listener) }) // ends when Close closes the server
	return m, nil
}

// Close stops the proxy and its connections.
func (m *TamperingProxy) Close() {
	_ = m.server.Close()
	m.served.Wait()
}

// request changes a request to the gateway. It first reads the whole request: a server stops
// reading a request when its response has started, which would break off the rest.
func (m *TamperingProxy) request(r *http.Request) {
	if r.Body == nil {
		return
	}
	b, _ := io.ReadAll(r.Body) // on an error the client has disconnected
	sealed := r.URL.Path == wire.PathOneOff
	if h, err := wire.ParseHeader(b); err == nil && r.URL.Path == wire.PathRequest {
		m.Target.Store(&h.Target)
		sealed = true
	}
	if f := m.Way.Load().Request; f != nil && sealed {
		b = f(b)
	}
	r.Body = io.NopCloser(bytes.NewReader(b))
}

// changeResponse changes a response to the client.
func (m *TamperingProxy) changeResponse(r *http.Response) error {
	f := m.Way.Load().Response
	if path := r.Request.URL.Path; f == nil || path != wire.PathRequest && path != wire.PathOneOff {
		return nil
	}
	b, err := io.ReadAll(r.Body)
	r.Body.Close()
	b = f(b)
	r.Body = io.NopCloser(bytes.NewReader(b))
	r.Header.Set("Content-Length", strconv.Itoa(len(b)))
	return err
}

// FlipBit returns a change of one bit, in the byte at i/n of the length.
func FlipBit(i, n int) func([]byte) []byte {
	return func(b []byte) []byte {
		if len(b) > 0 {
			b[len(b)*i/n] ^= 1
		}
		return b
	}
}

// CutHalf returns the first half of b.
func CutHalf(b []byte) []byte { return b[:len(b)/2] }
