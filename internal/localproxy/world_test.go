package localproxy

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// inside is the host of requests in the cluster of these tests.
const inside = "scoring.clinic.example"

// token is the token of the tests that have one.
const token = "a-token-of-24-characters"

// cluster plays the way to a cluster: it hands requests to a function.
type cluster func(*http.Request) (*http.Response, error)

func (c cluster) RoundTrip(r *http.Request) (*http.Response, error) { return c(r) }

// served is a cluster whose units run a handler, over a real connection.
func served(t *testing.T, h http.HandlerFunc) cluster {
	t.Helper()
	unit := httptest.NewServer(h)
	through := &http.Transport{DisableCompression: true}
	t.Cleanup(func() { unit.Close(); through.CloseIdleConnections() })
	return func(r *http.Request) (*http.Response, error) {
		out := r.Clone(r.Context())
		out.Trailer = r.Trailer
		out.URL.Scheme, out.URL.Host = "http", unit.Listener.Addr().String()
		return through.RoundTrip(out)
	}
}

// started is a proxy that serves.
type started struct {
	*Proxy
	address string
	end     context.CancelFunc
	ended   chan error
}

// start starts a proxy on loopback, until the test ends.
func start(t *testing.T, c Config) *started {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	testworld.NoError(t, err)
	return startOn(t, c, l)
}

func startOn(t *testing.T, c Config, l net.Listener) *started {
	t.Helper()
	c.Host = func() string { return inside }
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p, err := NewProxy(c)
	testworld.NoError(t, err)
	s := &started{Proxy: p, address: l.Addr().String(), ended: make(chan error, 1)}
	var ctx context.Context
	ctx, s.end = context.WithCancel(context.WithoutCancel(t.Context()))
	go func() { s.ended <- p.ServePrograms(ctx, l, 10*time.Second); close(s.ended) }()
	t.Cleanup(func() {
		s.end()
		for err := range s.ended {
			testworld.NoError(t, err)
		}
	})
	return s
}

func (s *started) url(path string) string { return "http://" + s.address + path }

// client returns a client of the proxy that keeps nothing.
func (s *started) client(t *testing.T) *http.Client {
	through := &http.Transport{DisableCompression: true}
	t.Cleanup(through.CloseIdleConnections)
	return &http.Client{Transport: through}
}

// raw sends bytes on a connection of its own, and returns the response.
func (s *started) raw(t *testing.T, request string) *http.Response {
	t.Helper()
	c, err := net.Dial("tcp", s.address)
	testworld.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	_, err = io.WriteString(c, strings.ReplaceAll(request, "ADDRESS", s.address))
	testworld.NoError(t, err)
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	testworld.NoError(t, err)
	return response
}

// problemIn reads the problem of a response.
func problemIn(t *testing.T, response *http.Response) problem {
	t.Helper()
	var p problem
	b, err := io.ReadAll(response.Body)
	testworld.NoError(t, err)
	if err := json.Unmarshal(b, &p); err != nil || response.Header.Get("Content-Type") != "application/problem+json" || p.Status != response.StatusCode {
		t.Fatalf("got status %d, %q, %s, want a problem", response.StatusCode, response.Header, b)
	}
	return p
}
