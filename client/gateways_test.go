package client

import (
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestGateways: requests stay with a gateway while it responds, and go to the next one
// after it failed to respond or reported that it reaches no unit.
func TestGateways(t *testing.T) {
	status := map[string]int{}
	var asked []string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.Host+r.URL.Path)
		if code := status[r.Host]; code != 0 {
			w.WriteHeader(code)
		}
	})
	one, two := httptest.NewServer(h), httptest.NewServer(h)
	defer two.Close()
	all, err := parseGateways(one.URL + "/p," + two.URL + "/p")
	if err != nil {
		t.Fatal(err)
	}
	g := &gateways{inner: newGateway(nil), all: all}
	defer g.inner.CloseIdleConnections()
	send := func() {
		r := httptest.NewRequest(http.MethodPost, one.URL+"/p/x", strings.NewReader("content"))
		r.RequestURI = ""
		if response, err := g.RoundTrip(r); err == nil {
			response.Body.Close()
		}
		if got := "http://" + r.URL.Host; got != one.URL {
			t.Errorf("the caller's request was changed: %s", got)
		}
	}
	first, second := strings.TrimPrefix(one.URL, "http://"), strings.TrimPrefix(two.URL, "http://")
	send()
	status[first] = http.StatusMisdirectedRequest
	send()
	status[first] = http.StatusServiceUnavailable
	send()
	send()
	status[second] = http.StatusBadGateway
	send()
	one.Close()
	send() // no gateway responds
	status[second] = 0
	send()
	want := []string{first, first, first, second, second, second}
	for i := range want {
		want[i] += "/p/x"
	}
	if got := strings.Join(asked, " "); got != strings.Join(want, " ") {
		t.Errorf("asked: got %s, want %s", got, strings.Join(want, " "))
	}
}

// TestGatewayDials: requests that find no connection, or a full one, share a new
// connection; they do not make a handshake each.
func TestGatewayDials(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/2": true, "HTTP/1.1": false} {
		t.Run(name, func(t *testing.T) {
			const requests = 600 // one HTTP/2 connection carries 250
			var connections, under atomic.Int64
			release := make(chan struct{})
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if (r.ProtoMajor == 2) != http2 {
					t.Errorf("got a request over %s", r.Proto)
				}
				if under.Add(1) == requests {
					close(release)
				}
				<-release
			}))
			server.EnableHTTP2 = http2
			server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
				if s == http.StateNew {
					connections.Add(1)
				}
			}
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.StartTLS()
			defer server.Close()
			roots := x509.NewCertPool()
			roots.AddCert(server.Certificate())
			gateway := newGateway(roots)
			defer gateway.CloseIdleConnections()
			var all sync.WaitGroup
			for range requests {
				all.Go(func() {
					r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
					if err == nil {
						var response *http.Response
						if response, err = gateway.RoundTrip(r); err == nil {
							err = response.Body.Close()
						}
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			if got := connections.Load(); http2 && got > 20 {
				t.Errorf("got %d connections for %d requests, want few", got, requests)
			}
		})
	}
}
