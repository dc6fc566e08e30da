package agent

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"sync"
	"sync/atomic"
	"time"

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
			w, r = fullDuplex(w, r)
		}
		proxy.ServeHTTP(w, r)
	})
	return handler, transport.CloseIdleConnections
}

// fullDuplex permits the response to start before the end of the request. For HTTP/1.1 it must
// be enabled, which fails only for writers that are not the server's own. A response that does
// start early is the last one on its connection: the server of net/http panics at the next
// request if this request was not read to its end (go.dev/issue/68560), and the client would not
// learn the outcome of that next request.
func fullDuplex(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	body := &watchedBody{ReadCloser: r.Body}
	r = r.WithContext(r.Context()) // the server keeps using the original request
	r.Body = body
	return lastOn{w, body}, r
}

// watchedBody records whether the body was read to its end.
type watchedBody struct {
	io.ReadCloser
	ended atomic.Bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.ended.Store(true)
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
