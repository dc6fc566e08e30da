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
		if r.ProtoMajor == 1 && r.Body != http.NoBody {
			w, r = fullDuplex(w, r)
		}
		proxy.ServeHTTP(w, r)
	})
	return handler, transport.CloseIdleConnections
}

// fullDuplex lets the response begin before the request has ended, which HTTP/1.1 must
// enable. It fails only for writers that are not the server's own. A response that does
// begin before is the last on its connection: the server of net/http panics at the next
// request when this one was not read to its end (go.dev/issue/68560), and
// the client would not know the outcome of that.
func fullDuplex(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request) {
	_ = http.NewResponseController(w).EnableFullDuplex()
	body := &watchedBody{ReadCloser: r.Body}
	r = r.WithContext(r.Context()) // the server goes on looking at its own
	r.Body = body
	return lastOn{w, body}, r
}

// watchedBody remembers whether it was read to its end.
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

// lastOn is a response that closes its connection when it begins before its request
// was read to its end.
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

// Unwrap is for [http.ResponseController].
func (l lastOn) Unwrap() http.ResponseWriter { return l.ResponseWriter }

// rewrite sends a request to the program, with a Forwarded header (RFC 7239) of
// the agent's own and none of what the client says about earlier hops.
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

func (buffers) Get() []byte { return bufferPool.Get().(*[bufferSize]byte)[:] }

func (buffers) Put(b []byte) { bufferPool.Put((*[bufferSize]byte)(b)) }
