package channelhttp

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// BenchmarkRequest is G7: a request in a session, with both ends in this process, against
// plain HTTP/1.1 with the same handler; without a gateway and in cleartext on loopback.
func BenchmarkRequest(b *testing.B) {
	for _, size := range []int{64, 1 << 10, 16 << 10, 1 << 20} {
		body := bytes.Repeat([]byte("x"), size)
		app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			if _, err := io.Copy(io.Discard, r.Body); err == nil {
				w.Write(body)
			}
		})
		c := newCluster(b, 1, app)
		inner := &http.Transport{MaxIdleConnsPerHost: 4, DisableCompression: true}
		for _, kind := range []string{"plain", "channel"} {
			b.Run(fmt.Sprintf("%s/%d", kind, size), func(b *testing.B) {
				h, rt := http.Handler(app), http.RoundTripper(inner)
				if kind == "channel" {
					h = c.units[0].server
				}
				l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
				server := &http.Server{Handler: h}
				go server.Serve(l)
				defer server.Close()
				at := "http://" + l.Addr().String()
				if kind == "channel" {
					rt = testworld.Must(NewTransport(TransportConfig{Gateway: testworld.Must(url.Parse(at)), Inner: inner, Pin: c.byTask(), Trust: c.world, Clock: c.clock.Now}))
				}
				measured(b, func() {
					response, err := rt.RoundTrip(testworld.Must(http.NewRequest("POST", at+"/score", bytes.NewReader(body))))
					if err != nil {
						b.Fatal(err)
					}
					n, err := io.Copy(io.Discard, response.Body)
					response.Body.Close()
					if err != nil || n != int64(size) {
						b.Fatal(n, err)
					}
				})
			})
		}
	}
}

// BenchmarkOneOff measures a unit's cost of a one-off request of 1 KiB under each KEM:
// opening the request and sealing the response.
func BenchmarkOneOff(b *testing.B) {
	c := newCluster(b, 1, repeat)
	hybrid := c.keysOf(c.units[0], c.byTask())
	for name, keys := range map[string]unitauth.OHTTPKeys{"hybrid": hybrid, "x25519": x25519(hybrid)} {
		body := oneOffBody(keys, true, testworld.Must(http.NewRequest(http.MethodGet, base, bytes.NewReader(make([]byte, 1<<10)))))
		b.Run(name, func(b *testing.B) {
			measured(b, func() {
				r := httptest.NewRequest(http.MethodPost, wire.PathOneOff, bytes.NewReader(body))
				r.Header.Set("Content-Type", wire.TypeOneOff)
				w := httptest.NewRecorder()
				if c.units[0].server.ServeHTTP(w, r); w.Code != http.StatusOK {
					b.Fatal(w.Code)
				}
			})
		})
	}
}
