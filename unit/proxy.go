package unit

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"time"
)

// bufferSize is that of copying between connections, in bytes.
const bufferSize = 32 << 10

// idleProgramTime is how long a connection to the program is kept without a
// request: less than usual servers keep theirs (gunicorn 2 s, node 5 s), so that
// no request meets one that is just being closed.
const idleProgramTime = time.Second

// newProxy is a reverse proxy to the program, and what closes its idle
// connections.
func newProxy(address string, log *slog.Logger) (http.Handler, func()) {
	transport := &http.Transport{
		DialContext:         new(net.Dialer).DialContext,
		MaxIdleConnsPerHost: 1024,
		IdleConnTimeout:     idleProgramTime,
		DisableCompression:  true,
	}
	proxy := &httputil.ReverseProxy{
		Transport:     transport,
		Rewrite:       func(r *httputil.ProxyRequest) { rewrite(r, address) },
		FlushInterval: -1, // at once
		BufferPool:    buffers{},
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			log.Debug("program did not answer", "cause", err)
			if errors.Is(err, context.Canceled) {
				panic(http.ErrAbortHandler) // the client is gone
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Otherwise HTTP/1.1 holds the answer until the request has ended.
		// It fails only for writers that are not the server's own.
		_ = http.NewResponseController(w).EnableFullDuplex()
		proxy.ServeHTTP(w, r)
	})
	return handler, transport.CloseIdleConnections
}

// rewrite sends a request to the program, with a Forwarded header (RFC 7239) of
// the agent's own and none of what the client says about earlier hops.
func rewrite(r *httputil.ProxyRequest, address string) {
	for name := range r.Out.Header {
		if name == "Forwarded" || name == RoleField || name == "X-Real-Ip" || strings.HasPrefix(name, "X-Forwarded-") {
			delete(r.Out.Header, name)
		}
	}
	r.Out.URL.Scheme, r.Out.URL.Host = "http", address
	if p, ok := PeerOf(r.In.Context()); ok {
		r.Out.Header[RoleField] = []string{p.Role()}
	}
	r.Out.Header["Forwarded"] = []string{forwarded(r.In.RemoteAddr, r.In.Host)}
}

// forwarded is a Forwarded header. The host is the client's word, so it stays
// inside its quotes.
func forwarded(remote, host string) string {
	node, _, err := net.SplitHostPort(remote)
	switch {
	case err != nil:
		node = "unknown"
	case strings.Contains(node, ":"):
		node = `"[` + node + `]"`
	}
	return "for=" + node + `;host="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(host) + `";proto=https`
}

// buffers lends copy buffers.
type buffers struct{}

var bufferPool = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func (buffers) Get() []byte  { return bufferPool.Get().(*[bufferSize]byte)[:] }
func (buffers) Put(b []byte) { bufferPool.Put((*[bufferSize]byte)(b)) }
