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

// TamperingProxy is between a client and the gateway, as any host can be. It changes
// the requests and responses of sessions and one-off requests, and reads of them what any host can.
type TamperingProxy struct {
	URL    string
	server *http.Server
	served sync.WaitGroup
	Way    atomic.Pointer[Change]
	Target atomic.Pointer[wire.UnitID] // that the newest request is bound to
}

// Change makes other bytes of a sealed request and of a sealed response.
type Change struct{ Request, Response func([]byte) []byte }

// NewTamperingProxy is a proxy before the gateway at a URL, and changes nothing at first.
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
		Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, // of a unit, where it brings all to one
	}}
	m.served.Go(func() { _ = m.server.Serve(listener) }) // ends by close
	return m, nil
}

// Close ends it.
func (m *TamperingProxy) Close() {
	_ = m.server.Close()
	m.served.Wait()
}

// request changes what the gateway gets. It reads all of it first: a server stops
// reading a request whose response has begun, which would break one on its way.
func (m *TamperingProxy) request(r *http.Request) {
	if r.Body == nil {
		return
	}
	b, _ := io.ReadAll(r.Body) // a client that is gone reads no error
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

// changeResponse changes what the client gets.
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

// FlipBit changes one bit: of the byte at i of n equal steps.
func FlipBit(i, n int) func([]byte) []byte {
	return func(b []byte) []byte {
		if len(b) > 0 {
			b[len(b)*i/n] ^= 1
		}
		return b
	}
}

// CutHalf cuts the rest off.
func CutHalf(b []byte) []byte { return b[:len(b)/2] }
