package bench

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/localproxy"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// streamTokens is the number of tokens in one measured stream.
const streamTokens = 2000

// writeTokens streams tokens, each flushed.
func writeTokens(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/event-stream")
	for range streamTokens {
		io.WriteString(w, "data: {\"token\":\" lighthouse\"}\n\n")
		http.NewResponseController(w).Flush()
	}
}

// BenchmarkLocalProxy is N14: a request of 1 KiB, and a streamed token, through `cohort proxy`
// against the same in a session of the Go client: the CPU time of all ends, and the time of one
// request after the other. A bare httputil.ReverseProxy over the same session shows what the
// second hop, plain HTTP on loopback, costs by itself.
func BenchmarkLocalProxy(b *testing.B) {
	p := start(b)
	session := testworld.Must(client.Open(b.Context(), client.OpenConfig{Trust: p.trust(b), Gateway: p.Channel}))
	b.Cleanup(func() { session.Close(context.Background()) })
	proxy := testworld.Must(localproxy.NewProxy(localproxy.Config{Through: session, Host: func() string { return strings.TrimPrefix(named, "https://") }, Log: slog.New(slog.DiscardHandler)}))
	l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- proxy.ServePrograms(ctx, l, time.Second) }()
	b.Cleanup(func() { stop(); <-ended })
	target := testworld.Must(url.Parse(named))
	reverse := httptest.NewServer(&httputil.ReverseProxy{Transport: session, FlushInterval: -1, Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target) }})
	b.Cleanup(reverse.Close)
	program := &http.Transport{MaxIdleConnsPerHost: inFlight, DisableCompression: true}
	b.Cleanup(program.CloseIdleConnections)
	at, body := "http://"+l.Addr().String(), make([]byte, 1<<10)
	const n = 800
	b.Run("request", func(b *testing.B) {
		through := func(rt http.RoundTripper, url string) func() time.Duration {
			return func() time.Duration { return p.pair(func() { all(n, func() { post(rt, url, body) }) }) / n }
		}
		Compare(b, Contender{"direct", through(session, named)}, Contender{"bare", through(program, reverse.URL)}, Contender{"proxy", through(program, at)})
	})
	b.Run("latency", func(b *testing.B) {
		through := func(rt http.RoundTripper, url string) func() time.Duration {
			return func() time.Duration {
				begin := time.Now()
				for range n {
					post(rt, url, body)
				}
				return time.Since(begin) / n
			}
		}
		Compare(b, Contender{"direct", through(session, named)}, Contender{"bare", through(program, reverse.URL)}, Contender{"proxy", through(program, at)})
	})
	b.Run("token", func(b *testing.B) {
		through := func(rt http.RoundTripper, url string) func() time.Duration {
			return func() time.Duration { return p.pair(func() { readTokens(rt, url) }) / streamTokens }
		}
		Compare(b, Contender{"direct", through(session, named)}, Contender{"bare", through(program, reverse.URL)}, Contender{"proxy", through(program, at)})
	})
}

// readTokens reads one stream to its end.
func readTokens(rt http.RoundTripper, url string) {
	response := testworld.Must(rt.RoundTrip(testworld.Must(http.NewRequest(http.MethodGet, url+"/stream", nil))))
	defer response.Body.Close()
	n := 0
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if len(lines.Text()) > 0 {
			n++
		}
	}
	if lines.Err() != nil || n != streamTokens {
		panic("a stream with another number of tokens")
	}
}
