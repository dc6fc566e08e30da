package client_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"

	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
)

// memory is a cluster inside a synctest bubble: connections are pipes, and time passes only
// when all goroutines wait.
type memory struct {
	clock   time.Time // of the world, when the bubble started
	begun   time.Time
	servers map[string]*listener
	down    map[string]bool                                                      // addresses that never accept a connection
	via     func(ctx context.Context, network, address string) (net.Conn, error) // replaces pipes, if set

	mu    sync.Mutex // guards dials
	dials map[string]int
}

type listener struct {
	conns chan net.Conn
	over  chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.over:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error   { return nil }
func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

func (m *memory) now() time.Time {
	if m.begun.IsZero() { // not in the bubble yet
		return m.clock
	}
	return m.clock.Add(time.Since(m.begun))
}

func (m *memory) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if m.via != nil {
		return m.via(ctx, network, address)
	}
	m.mu.Lock()
	m.dials[address]++
	m.mu.Unlock()
	if m.down[address] {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	near, far := net.Pipe()
	select {
	case m.servers[address].conns <- far:
		return near, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// inBubble runs f with a client of two replicas, "192.0.2.1:1" and "192.0.2.2:1", that
// respond as handler states.
func inBubble(t *testing.T, handler func(address string) http.HandlerFunc, f func(m *memory, c *client.Client)) {
	w := newWorld(t, "1")
	m := &memory{clock: time.Now(), servers: make(map[string]*listener), down: make(map[string]bool), dials: make(map[string]int)}
	trust := w.fetch(func(c *client.TrustConfig) { c.Clock = m.now })
	leaf := w.shared("scoring", "scoring 1", m.clock)
	w.stop() // no traffic from outside the bubble
	addresses := []string{"192.0.2.1:1", "192.0.2.2:1"}
	bubble.Test(t, func(t *testing.T) {
		m.begun = time.Now()
		var servers sync.WaitGroup
		config := identity.ServerTLS(func() (*tls.Certificate, error) { return leaf, nil })
		config.NextProtos = nil
		for _, a := range addresses {
			l := &listener{conns: make(chan net.Conn), over: make(chan struct{})}
			m.servers[a] = l
			server := &http.Server{Handler: handler(a), ErrorLog: quiet}
			servers.Go(func() { server.Serve(tls.NewListener(l, config)) })
			defer func() {
				close(l.over)
				server.Close()
			}()
		}
		c := testworld.Must(client.New(client.Config{Trust: trust, Addresses: addresses, Dial: m.dial, Refresh: time.Hour}))
		f(m, c)
		c.Close()
		synctest.Wait()
	})
}

func sleepy(d time.Duration) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-time.After(d):
		case <-r.Context().Done():
		}
		io.WriteString(w, "ok")
	}
}

// TestHedgeTime: while nothing is known about latency, the client waits 50 ms for a
// response, and then sends the request to the other replica.
func TestHedgeTime(t *testing.T) {
	var once sync.Once
	handler := func(string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			wait := 3 * time.Millisecond
			once.Do(func() { wait = time.Hour })
			sleepy(wait)(w, r)
		}
	}
	inBubble(t, handler, func(m *memory, c *client.Client) {
		began := time.Now()
		get(t, c, "ok")
		if got, want := time.Since(began), 53*time.Millisecond; got != want {
			t.Errorf("took %v, want %v", got, want)
		}
		if got := c.Stats().Hedges; got != 1 {
			t.Errorf("%d hedges, want 1", got)
		}
	})
}

// TestPlainIsNotHedged: the client sends a request that may not be executed twice only
// once, and waits.
func TestPlainIsNotHedged(t *testing.T) {
	inBubble(t, func(string) http.HandlerFunc { return sleepy(time.Minute) }, func(m *memory, c *client.Client) {
		began := time.Now()
		if _, err := do(c, kinds["plain"]()); err != nil {
			t.Error(err)
		}
		if got := time.Since(began); got != time.Minute {
			t.Errorf("took %v, want %v", got, time.Minute)
		}
		if got := c.Stats().Sends; got != 1 {
			t.Errorf("%d sends, want 1", got)
		}
	})
}

// TestStaggerTime: for every kind of request, the client races a second connection after 50
// ms, and gives up the first after 5 s.
func TestStaggerTime(t *testing.T) {
	inBubble(t, func(string) http.HandlerFunc { return sleepy(0) }, func(m *memory, c *client.Client) {
		m.down["192.0.2.1:1"] = true
		for {
			began := time.Now()
			if _, err := do(c, kinds["plain"]()); err != nil {
				t.Error(err)
			}
			took := time.Since(began)
			if took != 0 && took != 50*time.Millisecond {
				t.Errorf("took %v, want nothing or 50ms", took)
			}
			if took != 0 {
				break
			}
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := c.Stats().Replicas[0].Failures; got == 0 {
			t.Error("the connection is still waited for")
		}
	})
}

// TestPauseTime: the client tries a replica that is down after pauses that double, not for
// every request.
func TestPauseTime(t *testing.T) {
	inBubble(t, func(string) http.HandlerFunc { return sleepy(0) }, func(m *memory, c *client.Client) {
		m.down["192.0.2.1:1"] = true
		for range 6000 {
			get(t, c, "ok")
			time.Sleep(10 * time.Millisecond)
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		// Each attempt takes 5 s to fail and at most 10 s of pause: at least 5 in a minute,
		// and a few more before the first result.
		if got := m.dials["192.0.2.1:1"]; got < 4 || got > 30 {
			t.Errorf("%d connections in a minute, want 4 to 30", got)
		}
	})
}
