package agent

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/bench"
)

// BenchmarkProxy compares the agent's proxy with a bare httputil.ReverseProxy,
// both without TLS: the CPU time of client, proxy and program together. The goal
// is at most 1.2 times.
func BenchmarkProxy(b *testing.B) {
	body := make([]byte, 1024)
	program := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(body) }))
	defer program.Close()
	target, err := url.Parse(program.URL)
	if err != nil {
		b.Fatal(err)
	}
	ours, closeIdle := newProxy(target.Host, slog.New(slog.DiscardHandler))
	defer closeIdle()
	client := &http.Client{Transport: &http.Transport{DialContext: new(net.Dialer).DialContext}}
	defer client.CloseIdleConnections()
	through := func(proxy http.Handler) func() time.Duration {
		front := httptest.NewServer(proxy)
		b.Cleanup(front.Close)
		return bench.Repeat(500, func() {
			answer, err := client.Get(front.URL)
			if err != nil {
				b.Fatal(err)
			}
			io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		})
	}
	bench.Compare(b,
		bench.Contender{Name: "bare", Cost: through(httputil.NewSingleHostReverseProxy(target))},
		bench.Contender{Name: "agent", Cost: through(ours)})
}
