package channel

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"syscall"
	"testing"

	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// cpu is the process's CPU time in nanoseconds.
func cpu() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

// measured reports the CPU time of one operation: f runs it n times.
func measured(b *testing.B, f func()) {
	b.ReportAllocs()
	before := cpu()
	for b.Loop() {
		f()
	}
	b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op")
}

// BenchmarkJoin is G10: joining a sealed session, beside the bare AEAD open of
// the same bytes.
func BenchmarkJoin(b *testing.B) {
	w := newWorld(b)
	a := w.host(Limits{})
	_, sealed := w.opened(a, w.byTask())
	u := testworld.Must(envelope.ParseSealed(envelope.Session, sealed))
	k := testworld.Must(a.standing.follow.derive(a.id))
	b.Run("aead", func(b *testing.B) {
		dst := make([]byte, 0, envelope.MaxSealed)
		measured(b, func() { testworld.Must(k.aead.Open(dst, u.Nonce, u.Ciphertext, u.AD)) })
	})
	const batch = 1 << 14
	list := make([][]byte, batch)
	for i := range list {
		list[i] = sealAs(w, a, func(s *session, b *envelope.Header, _ *ring) {
			s.id[23], s.id[22] = byte(i), byte(i>>8)
			b.Session = s.id
		})
	}
	b.Run("join", func(b *testing.B) {
		h, i := w.host(Limits{Sessions: batch}), 0
		measured(b, func() {
			if i++; i%batch == 0 {
				b.StopTimer()
				h = w.host(Limits{Sessions: batch})
				b.StartTimer()
			}
			testworld.Must(h.Join(list[i%batch], noon))
		})
	})
}

// BenchmarkSessionMemory is the memory of one warm session, at three sizes of
// the table.
func BenchmarkSessionMemory(b *testing.B) {
	for _, n := range []int{1_000, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				w := newWorld(b)
				h := w.host(Limits{Sessions: n})
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				for i := range n {
					s := &session{id: wire.SessionID{byte(i), byte(i >> 8), byte(i >> 16)}, expiry: 1 << 40, ring: h.standing.follow.key.ID()}
					if err := h.install(s, noon); err != nil {
						b.Fatal(err)
					}
				}
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(n), "B/session")
				runtime.KeepAlive(h)
			}
		})
	}
}

// BenchmarkRequest is G7: a request in a session, both ends in this process,
// beside plain HTTP/1.1 with the same handler; client and unit direct, in
// cleartext on loopback.
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
					answer, err := rt.RoundTrip(testworld.Must(http.NewRequest("POST", at+"/score", bytes.NewReader(body))))
					if err != nil {
						b.Fatal(err)
					}
					n, err := io.Copy(io.Discard, answer.Body)
					answer.Body.Close()
					if err != nil || n != int64(size) {
						b.Fatal(n, err)
					}
				})
			})
		}
	}
}

// BenchmarkOneOff is what a one-off request of 1 KiB costs a unit, under each KEM:
// opening it and sealing the answer.
func BenchmarkOneOff(b *testing.B) {
	c := newCluster(b, 1, repeat)
	hybrid := c.keysOf(c.units[0], c.byTask())
	for name, keys := range map[string]OneOffKeys{"hybrid": hybrid, "x25519": x25519(hybrid)} {
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
