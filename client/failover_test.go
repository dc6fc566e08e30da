package client_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// kinds are requests by how they may be retried.
var kinds = map[string]func() *http.Request{
	"safe": func() *http.Request { return testworld.Must(http.NewRequest("GET", "https://"+serverName+"/", nil)) },
	"marked": func() *http.Request {
		r := testworld.Must(http.NewRequest("POST", "https://"+serverName+"/", io.NopCloser(strings.NewReader("one"))))
		r.Header.Set("Idempotency-Key", "1")
		return r
	},
	"plain": func() *http.Request {
		return testworld.Must(http.NewRequest("POST", "https://"+serverName+"/", strings.NewReader("one")))
	},
}

// soon gives a request a deadline.
func soon(t testing.TB, r *http.Request) *http.Request {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	t.Cleanup(cancel)
	return r.WithContext(ctx)
}

// TestFaults: the first response of the cluster breaks, from whichever replica. Each row
// states how a request ends that may be retried, and one that may not.
func TestFaults(t *testing.T) {
	const deadline = 300 * time.Millisecond
	unavailable := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	tests := []struct {
		name  string
		fault http.HandlerFunc
		again error // error of a request that may be retried
		once  error // error of a request that may not
		code  int   // status of the latter
	}{
		{"reset before the response", func(w http.ResponseWriter, _ *http.Request) { reset(w) }, nil, client.ErrMaybeExecuted, 0},
		{"cut in a short response", func(w http.ResponseWriter, _ *http.Request) { half(w, "100") }, nil, client.ErrMaybeExecuted, 0},
		{"cut in a stream", func(w http.ResponseWriter, _ *http.Request) { half(w, "") }, io.ErrUnexpectedEOF, io.ErrUnexpectedEOF, 200},
		{"cut in a long response", func(w http.ResponseWriter, _ *http.Request) { half(w, "1000000") }, io.ErrUnexpectedEOF, io.ErrUnexpectedEOF, 200},
		{"hang", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, nil, client.ErrMaybeExecuted, 0},
		{"slow", func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(deadline / 2)
			io.WriteString(w, "ok")
		}, nil, nil, 200},
		{"unavailable", unavailable, nil, nil, 503},
	}
	w := newWorld(t, "1")
	for _, tt := range tests {
		for kind, request := range kinds {
			t.Run(tt.name+"/"+kind, func(t *testing.T) {
				replicas := w.replicas(3, "1")
				var first atomic.Bool
				for _, r := range replicas {
					r.setHandler(func(w http.ResponseWriter, r *http.Request) {
						if body, _ := io.ReadAll(r.Body); r.Method == "POST" && string(body) != "one" {
							t.Errorf("got body %q, want %q", body, "one")
						}
						if first.CompareAndSwap(false, true) {
							tt.fault(w, r)
							return
						}
						io.WriteString(w, "ok")
					})
				}
				c := w.client(replicas...)
				ctx, cancel := context.WithTimeout(t.Context(), deadline)
				defer cancel()
				want := tt.again
				if kind == "plain" {
					want = tt.once
				}
				response, err := c.RoundTrip(request().WithContext(ctx))
				if err == nil {
					if kind == "plain" && response.StatusCode != tt.code {
						t.Errorf("got status %d, want %d", response.StatusCode, tt.code)
					}
					_, err = io.ReadAll(response.Body)
					response.Body.Close()
				}
				if !errors.Is(err, want) {
					t.Errorf("got error %v, want %v", err, want)
				}
				if errors.Is(want, client.ErrMaybeExecuted) {
					testworld.Refused(t, err, wire.OutcomeUnknown)
				}
				if n := executed(replicas); kind == "plain" && n != 1 {
					t.Errorf("a request that may not be repeated was executed %d times", n)
				}
				testworld.Eventually(t, "nothing in flight", func() bool { return inFlight(c) == 0 })
			})
		}
	}
}

func executed(replicas []*replica) (n int64) {
	for _, r := range replicas {
		n += r.executed.Load()
	}
	return n
}

func inFlight(c *client.Client) (n int) {
	for _, r := range c.Stats().Replicas {
		n += r.InFlight + r.Late
	}
	return n
}

// TestDeadAddresses: one replica works among addresses that do not, and serves every
// request.
func TestDeadAddresses(t *testing.T) {
	mute := listen(t) // accepts and sends nothing
	t.Cleanup(func() { mute.Close() })
	closed := listen(t)
	closed.Close()
	cutter := listen(t) // closes every connection
	t.Cleanup(func() { cutter.Close() })
	go func() {
		for c, err := cutter.Accept(); err == nil; c, err = cutter.Accept() {
			c.Close()
		}
	}()
	w := newWorld(t, "1")
	for name, dead := range map[string]string{"refuses": closed.Addr().String(), "accepts and hangs": mute.Addr().String(), "accepts and cuts": cutter.Addr().String()} {
		for kind, request := range kinds {
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				alive := w.replicas(1, "1")
				for range 10 {
					c := w.clientOf(client.Config{Addresses: []string{dead, dead}}, alive...)
					began := time.Now()
					if body, err := do(c, request()); err != nil || body != "ok" {
						t.Errorf("got %q and error %v, want %q", body, err, "ok")
					}
					if took := time.Since(began); took > 2*time.Second {
						t.Errorf("took %v, want another replica to be asked after 50 ms", took)
					}
				}
				if n := executed(alive); n != 10 {
					t.Errorf("executed %d times, want 10", n)
				}
			})
		}
	}
}

// TestNeverShort: a response without a length is complete only if the replica closes TLS
// properly.
func TestNeverShort(t *testing.T) {
	w := newWorld(t, "1")
	r := w.replicas(1, "1")[0]
	c := w.client(r)
	for _, tt := range []struct {
		name string
		end  func(*tls.Conn)
		ok   bool
	}{
		{"said", func(c *tls.Conn) { c.Close() }, true},
		{"cut", func(c *tls.Conn) { c.NetConn().Close() }, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.setHandler(func(w http.ResponseWriter, _ *http.Request) {
				raw, _, _ := w.(http.Hijacker).Hijack()
				io.WriteString(raw, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhalf")
				tt.end(raw.(*tls.Conn))
			})
			body, err := do(c, kinds["safe"]())
			if (err == nil) != tt.ok {
				t.Errorf("got %q and error %v, want an error: %v", body, err, !tt.ok)
			}
		})
	}
}

// load sends retryable requests from n goroutines until stop closes, and returns the errors
// and the time of each request.
func load(c *client.Client, n int, stop <-chan struct{}) (took []time.Duration, faults []error) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range n {
		request := kinds["safe"]
		if i%2 == 1 {
			request = kinds["marked"]
		}
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				began := time.Now()
				body, err := do(c, request())
				mu.Lock()
				took = append(took, time.Since(began))
				if err != nil || body != "ok" {
					faults = append(faults, errors.Join(err, errors.New(body)))
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	return took, faults
}

func after(d time.Duration) <-chan struct{} {
	stop := make(chan struct{})
	time.AfterFunc(d, func() { close(stop) })
	return stop
}

// TestKilledReplicas: one of three replicas is killed repeatedly under load, and no request
// fails.
func TestKilledReplicas(t *testing.T) {
	w := newWorld(t, "1")
	replicas := w.replicas(3, "1")
	for _, r := range replicas {
		r.setHandler(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(10 * time.Millisecond)
			io.WriteString(w, "ok")
		})
	}
	c := w.client(replicas...)
	length, every := 3*time.Second, 250*time.Millisecond
	if testing.Short() {
		length, every = 6*time.Second, time.Second // under the race detector a replica takes long to recover
	}
	stop := after(length)
	var killer sync.WaitGroup
	killer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(every):
			}
			r := replicas[i%3]
			r.kill()
			time.Sleep(100 * time.Millisecond)
			r.restart(t)
		}
	})
	took, faults := load(c, 12, stop)
	killer.Wait()
	if len(faults) > 0 {
		t.Errorf("%d of %d requests failed, want none; first: %v", len(faults), len(took), faults[0])
	}
	if s := c.Stats(); s.Retries == 0 {
		t.Errorf("got no retry in %+v, so nothing was tested", s)
	}
}

// TestFrozenReplica: one of three replicas stops without closing any connection, and no
// request fails.
func TestFrozenReplica(t *testing.T) {
	w := newWorld(t, "1")
	replicas := w.replicas(3, "1")
	for _, r := range replicas {
		r.setHandler(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(10 * time.Millisecond)
			io.WriteString(w, "ok")
		})
	}
	c := w.client(replicas...)
	if _, faults := load(c, 8, after(time.Second)); len(faults) > 0 {
		t.Fatalf("before the fault: %v", faults[0])
	}
	before := c.Stats()
	replicas[1].gate.set(true)
	took, faults := load(c, 8, after(2*time.Second))
	if len(faults) > 0 {
		t.Errorf("%d of %d requests failed, want none; first: %v", len(faults), len(took), faults[0])
	}
	worst := time.Duration(0)
	for _, d := range took {
		worst = max(worst, d)
	}
	if worst > time.Second { // the goal is 100 ms; the test machine may be busy
		t.Errorf("the worst request took %v", worst)
	}
	now := c.Stats()
	if extra, most := now.Hedges-before.Hedges, int64(len(took)/20+20); extra == 0 || extra > most {
		t.Errorf("%d hedges for %d requests, want 1 to %d", extra, len(took), most)
	}
	t.Logf("worst %v, late after %v, %d hedges for %d requests", worst, now.LateAfter, now.Hedges-before.Hedges, len(took))
	replicas[1].gate.set(false)
}

// TestOutage: while no replica responds, requests fail at once and cause few connections.
// When a replica is back, it gets requests without a pause.
func TestOutage(t *testing.T) {
	for _, n := range []int{1, 3} {
		w := newWorld(t, "1")
		replicas := w.replicas(n, "1")
		c := w.client(replicas...)
		get(t, c, "ok")
		for _, r := range replicas {
			r.kill()
		}
		const calls = 200
		before := c.Stats().Dials
		for range calls {
			_, err := do(c, soon(t, kinds["safe"]()))
			if !errors.Is(err, client.ErrUnreachable) {
				t.Fatalf("got error %v, want %v", err, client.ErrUnreachable)
			}
			testworld.Refused(t, err, wire.Unavailable)
		}
		// One per call, a share of 15 %, its burst of 10, and the first probes after
		// pauses.
		if got, most := c.Stats().Dials-before, int64(calls+calls*15/100+10+10*n); got < calls || got > most {
			t.Errorf("%d replicas: %d connections for %d requests, want %d to %d", n, got, calls, calls, most)
		}
		for _, r := range replicas {
			r.restart(t)
		}
		get(t, c, "ok")
	}
}

// TestCertificateLife: several certificates expire under load, and no request fails.
func TestCertificateLife(t *testing.T) {
	w := newWorldOf(t, 3*time.Second, "1")
	replicas := w.replicas(3, "1")
	c := w.client(replicas...)
	took, faults := load(c, 8, after(6*time.Second))
	if len(faults) > 0 {
		t.Errorf("%d of %d requests failed, want none; first: %v", len(faults), len(took), faults[0])
	}
	for _, r := range replicas {
		if n := r.expired.Load(); n > 0 {
			t.Errorf("%d requests on a certificate that was over, want none", n)
		}
		if n := r.accepted.Load(); n < 3 {
			t.Errorf("%d connections, want new ones for new certificates", n)
		}
	}
}

func TestClose(t *testing.T) {
	w := newWorld(t, "1")
	replicas := w.replicas(3, "1")
	trust := w.fetch(nil)
	before := runtime.NumGoroutine()
	var addresses []string
	for _, r := range replicas {
		r.setHandler(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
		addresses = append(addresses, r.address)
	}
	c := testworld.Must(client.New(client.Config{Trust: trust, Addresses: addresses}))
	failed := make(chan error)
	for range 5 {
		go func() {
			_, err := do(c, kinds["safe"]())
			failed <- err
		}()
	}
	testworld.Eventually(t, "requests are under way", func() bool { return executed(replicas) >= 5 })
	c.Close()
	for range 5 {
		if err := <-failed; !errors.Is(err, client.ErrClosed) {
			t.Errorf("got error %v, want %v", err, client.ErrClosed)
		}
	}
	if _, err := do(c, kinds["safe"]()); !errors.Is(err, client.ErrClosed) {
		t.Errorf("after Close: got error %v, want %v", err, client.ErrClosed)
	}
	testworld.Eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })
}

// TestRetriesElsewhere: a reused connection breaks. The next attempt goes to the other
// replica, not to the same one over another connection.
func TestRetriesElsewhere(t *testing.T) {
	w := newWorld(t, "1")
	replicas := w.replicas(2, "1")
	c := w.client(replicas...)
	testworld.Eventually(t, "both replicas have connections", func() bool {
		get(t, c, "ok")
		return replicas[0].executed.Load() > 0 && replicas[1].executed.Load() > 0
	})
	for _, kind := range []string{"safe", "marked"} {
		before := executed(replicas)
		var broken atomic.Pointer[replica]
		for _, r := range replicas {
			r.setHandler(func(w http.ResponseWriter, _ *http.Request) {
				if broken.CompareAndSwap(nil, r) {
					reset(w)
					return
				}
				if broken.Load() == r {
					t.Errorf("%s: sent again to the replica whose connection broke", kind)
				}
				io.WriteString(w, "ok")
			})
		}
		if body, err := do(c, soon(t, kinds[kind]())); err != nil || body != "ok" {
			t.Errorf("%s: got %q and error %v, want %q", kind, body, err, "ok")
		}
		if got := executed(replicas) - before; got != 2 {
			t.Errorf("%s: executed %d times, want 2", kind, got)
		}
	}
}

// TestNotReplayed: a POST without Idempotency-Key is not sent again when the replica
// properly closes a reused connection without a response, although net/http accepts
// X-Idempotency-Key as a mark.
func TestNotReplayed(t *testing.T) {
	w := newWorld(t, "1")
	r := w.replicas(1, "1")[0]
	c := w.client(r)
	get(t, c, "ok")
	before := r.executed.Load()
	r.setHandler(func(w http.ResponseWriter, _ *http.Request) {
		raw, _, _ := w.(http.Hijacker).Hijack()
		raw.Close()
	})
	request := kinds["plain"]()
	request.Header.Set("X-Idempotency-Key", "1")
	if _, err := do(c, soon(t, request)); !errors.Is(err, client.ErrMaybeExecuted) {
		t.Errorf("got error %v, want %v", err, client.ErrMaybeExecuted)
	}
	if got := r.executed.Load() - before; got != 1 {
		t.Errorf("executed %d times, want 1", got)
	}
}
