package unit

import (
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"testing"
)

// BenchmarkProxy compares the agent's proxy with a bare httputil.ReverseProxy,
// both without TLS. The goal is at most 1.2 times its time.
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
	for _, row := range []struct {
		name  string
		proxy http.Handler
	}{
		{"bare", httputil.NewSingleHostReverseProxy(target)},
		{"agent", ours},
	} {
		b.Run(row.name, func(b *testing.B) {
			front := httptest.NewServer(row.proxy)
			defer front.Close()
			client := &http.Client{Transport: &http.Transport{DialContext: new(net.Dialer).DialContext}}
			defer client.CloseIdleConnections()
			b.ReportAllocs()
			for b.Loop() {
				answer, err := client.Get(front.URL)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
			}
		})
	}
}
