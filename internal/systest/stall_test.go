package systest

import (
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// stranger is a client of the gateway at one of the addresses 127.0.0.2 to 127.0.0.61, over
// one HTTP/2 connection. Without that limit net/http would open another connection for each
// request that finds all streams taken, which is a flood of handshakes (TestFlood).
func (c *Cluster) stranger(n int) *http.Client {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, byte(2+n%60))}}
	transport := &http.Transport{DialContext: d.DialContext, TLSClientConfig: insecure(), ForceAttemptHTTP2: true, MaxConnsPerHost: 1, HTTP2: &http.HTTP2Config{StrictMaxConcurrentRequests: true}}
	c.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// stall starts requests from the given number of clients, with streams requests each, and
// finishes none of them. A refused request starts again a second later.
func (c *Cluster) stall(ctx context.Context, strangers, streams int, path, kind string) (begun *atomic.Int64, wait func()) {
	begun = &atomic.Int64{}
	var all sync.WaitGroup
	for n := range strangers {
		to := c.stranger(n)
		for range streams {
			all.Go(func() {
				for ctx.Err() == nil {
					out, in := io.Pipe()
					r := testworld.Must(http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.manager.listen+path, out))
					r.ContentLength = 1400
					r.Header.Set("Content-Type", kind)
					go func() { _, _ = in.Write([]byte("x")); begun.Add(1) }()
					if answer, err := to.Do(r); err == nil {
						answer.Body.Close()
					}
					in.Close()
					select {
					case <-time.After(time.Second):
					case <-ctx.Done():
					}
				}
			})
		}
	}
	return begun, all.Wait
}

// madeUp sends requests in sessions that do not exist, from many addresses, until ctx ends.
func (c *Cluster) madeUp(ctx context.Context) (sent *atomic.Int64, wait func()) {
	sent = &atomic.Int64{}
	var all sync.WaitGroup
	for n := range 16 {
		to := c.stranger(n)
		all.Go(func() {
			for ctx.Err() == nil {
				h := wire.Header{Number: 1, NotAfter: time.Now().Add(time.Minute)}
				rand.Read(h.Session[:])
				first := h.Encode()
				r := testworld.Must(http.NewRequestWithContext(ctx, http.MethodPost, "https://"+c.manager.listen+wire.PathRequest, bytes.NewReader(first[:])))
				r.Header.Set("Content-Type", wire.TypeRequest)
				if answer, err := to.Do(r); err == nil {
					_, _ = io.Copy(io.Discard, answer.Body)
					answer.Body.Close()
				}
				sent.Add(1)
			}
		})
	}
	return sent, all.Wait
}

// TestStalledStrangers: clients start session openings and one-off requests over HTTP/2 and
// finish none, and send requests in sessions that do not exist. Meanwhile a client with a
// session is served, a new client opens a session, and one-off requests get responses.
func TestStalledStrangers(t *testing.T) {
	strangers, streams, length := 10, 60, 4*time.Second
	if full() {
		strangers, streams, length = 41, 250, 30*time.Second
	}
	s := &service{seen: map[string]int{}}
	c, _ := shared(t, 2, time.Hour, s)
	ch := c.OpenChannel(c.OpenConfig("scoring"))
	one := oneOff(t, c, trust(t, c), true)
	quiet, _ := measured(t, ch, length/4)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	opens, opened := c.stall(ctx, strangers, streams, wire.PathSession, wire.TypeSession)
	oneOffs, asked := c.stall(ctx, strangers, streams/5, wire.PathOneOff+"?task=scoring", wire.TypeOneOff)
	sent, done := c.madeUp(ctx)
	testworld.Within(t, 5*time.Minute, "strangers to stall", func() bool {
		return opens.Load() >= int64(strangers*streams) && oneOffs.Load() >= int64(strangers*streams/5)
	})
	loud, calls := measured(t, ch, length)
	for range 5 {
		c.OpenChannel(c.OpenConfig("scoring"))
		if status, _ := once(t, one, http.MethodGet, ""); status != http.StatusForbidden { // from the service: no session
			t.Errorf("a one-off request: got %d", status)
		}
	}
	t.Logf("%d opens and %d one-offs stalled, %d requests of made-up sessions; p99 of %d honest requests %v, %v before", opens.Load(), oneOffs.Load(), sent.Load(), calls, loud, quiet)
	stop()
	opened()
	asked()
	done()
}

// TestAbortedStreams: requests that their clients abandon midway leave no goroutine behind
// in client, gateway and unit. No unit refuses anything, and the session stays usable.
func TestAbortedStreams(t *testing.T) {
	rounds := 2
	if full() {
		rounds = 20
	}
	c, units := shared(t, 2, time.Hour, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		_, _ = io.Copy(w, r.Body)
	}))
	ch := c.OpenChannel(c.OpenConfig("scoring"))
	abort(t, ch, 50)
	time.Sleep(time.Second)
	before := runtime.NumGoroutine()
	for range rounds {
		abort(t, ch, 150)
	}
	testworld.Within(t, time.Minute, "what was aborted to end", func() bool {
		return runtime.NumGoroutine() < before+60 // kept-alive connections use some
	})
	for _, u := range units {
		if refused := u.Unit.Stats().Refused; len(refused) > 0 {
			t.Errorf("a unit refused %v", refused)
		}
	}
	r := testworld.Must(http.NewRequestWithContext(t.Context(), http.MethodGet, scoringURL+"/", nil))
	answer, err := ch.RoundTrip(r)
	if err != nil {
		t.Fatalf("the session afterwards: %v", err)
	}
	answer.Body.Close()
}

// abort starts n requests at once, and abandons each after a while.
func abort(t *testing.T, ch *client.Channel, n int) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			out, in := io.Pipe()
			r := testworld.Must(http.NewRequestWithContext(ctx, http.MethodPost, scoringURL+"/", out))
			go func() {
				_, _ = in.Write(make([]byte, 1000))
				time.Sleep(time.Duration(i%50) * time.Millisecond)
				cancel()
				in.CloseWithError(fmt.Errorf("left: %w", context.Canceled))
			}()
			if answer, err := ch.RoundTrip(r); err == nil {
				_, _ = io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
			}
		})
	}
	all.Wait()
}
