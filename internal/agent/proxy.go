package agent

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

	"github.com/cohort-tee/cohort/internal/fullduplex"
	"github.com/cohort-tee/cohort/unit"
)

// bufferSize is the size in bytes of a buffer for copying between connections.
const bufferSize = 32 << 10

// idleProgramTime is the time after which an idle connection to the program is closed. It is
// shorter than in common servers (gunicorn 2 s, node 5 s), so that no request is sent on a
// connection that the server is about to close.
const idleProgramTime = time.Second

// newProxy returns a reverse proxy to the program, and a function that closes its idle
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
		FlushInterval: -1, // flush at once
		BufferPool:    buffers{},
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			log.Debug("program did not answer", "cause", err)
			if errors.Is(err, context.Canceled) {
				panic(http.ErrAbortHandler) // the client has disconnected
			}
			w.WriteHeader(http.StatusBadGateway)
		},
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 1 && r.Body != http.NoBody {
			w, r = fullduplex.Enable(w, r)
		}
		proxy.ServeHTTP(w, r)
	})
	return handler, transport.CloseIdleConnections
}

// rewrite addresses a request to the program. It sets the header field Forwarded (RFC 7239) and
// the sender's role, and removes fields in which the client describes earlier hops.
func rewrite(r *httputil.ProxyRequest, address string) {
	for name := range r.Out.Header {
		if name == "Forwarded" || name == RoleField || name == "X-Real-Ip" || strings.HasPrefix(name, "X-Forwarded-") {
			delete(r.Out.Header, name)
		}
	}
	r.Out.URL.Scheme, r.Out.URL.Host = "http", address
	if p, ok := unit.PeerOf(r.In.Context()); ok {
		r.Out.Header[RoleField] = []string{p.RoleName()}
	}
	r.Out.Header["Forwarded"] = []string{forwarded(r.In.RemoteAddr, r.In.Host)}
}

// forwarded returns the value of a Forwarded field. The client chose host, so it is quoted and
// escaped.
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

// buffers implements [httputil.BufferPool].
type buffers struct{}

var bufferPool = sync.Pool{New: func() any { return new([bufferSize]byte) }}

func (buffers) Get() []byte { return bufferPool.Get().(*[bufferSize]byte)[:] }

func (buffers) Put(b []byte) { bufferPool.Put((*[bufferSize]byte)(b)) }
