package client_test

import (
	"context"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
)

// faultNet is the network of a bubble; tests kill and freeze its servers.
type faultNet struct {
	mu    sync.Mutex // guards the fields below
	gates map[string]*gate
	conns map[string][]net.Conn
	dead  map[string]bool
}

func (f *faultNet) of(address string) *gate {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gates[address] == nil {
		f.gates[address] = &gate{}
	}
	return f.gates[address]
}

// dial refuses dead servers. A client's writes are buffered, as by a socket.
func (f *faultNet) dial(m *memory) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, address string) (net.Conn, error) {
		gate := f.of(address)
		f.mu.Lock()
		dead := f.dead[address]
		f.mu.Unlock()
		if dead {
			return nil, &net.OpError{Op: "dial", Err: net.ErrClosed}
		}
		near, far := net.Pipe()
		f.mu.Lock()
		f.conns[address] = append(f.conns[address], far)
		f.mu.Unlock()
		select {
		case m.servers[address].conns <- &gatedConn{Conn: far, gate: gate}:
			return newBuffered(near), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *faultNet) kill(address string, dead bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead[address] = dead
	for _, c := range f.conns[address] {
		c.Close()
	}
	f.conns[address] = nil
}

// buffered is a connection whose writes do not wait for the peer.
type buffered struct {
	net.Conn
	queue chan []byte
	over  chan struct{}
	close func()
}

func newBuffered(c net.Conn) *buffered {
	b := &buffered{Conn: c, queue: make(chan []byte, 256), over: make(chan struct{})}
	b.close = sync.OnceFunc(func() { close(b.over) })
	go func() {
		for {
			select {
			case next := <-b.queue:
				if _, err := c.Write(next); err != nil {
					return
				}
			case <-b.over:
				return
			}
		}
	}()
	return b
}

func (b *buffered) Write(p []byte) (int, error) {
	select {
	case <-b.over:
		return 0, net.ErrClosed
	case b.queue <- slices.Clone(p):
		return len(p), nil
	}
}

func (b *buffered) Close() error {
	b.close()
	return b.Conn.Close()
}

// TestFaultTimes: in a bubble, two replicas that take 20 ms each get 500 requests a second,
// all safe or with a key. One replica is killed or frozen for 5 s, and latencies stay
// within the bounds of each row.
func TestFaultTimes(t *testing.T) {
	const (
		service = 20 * time.Millisecond
		every   = 2 * time.Millisecond
		victim  = "192.0.2.1:1"
	)
	tests := []struct {
		name  string
		fault func(f *faultNet, on bool)
		worst time.Duration
		p99   time.Duration
	}{
		{"killed", func(f *faultNet, on bool) { f.kill(victim, on) }, 2*service + 5*time.Millisecond, service + 20*time.Millisecond},
		{"frozen", func(f *faultNet, on bool) { f.of(victim).set(on) }, 100 * time.Millisecond, 3*service + 20*time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, func(string) http.HandlerFunc { return sleepy(service) }, func(m *memory, c *client.Client) {
				f := &faultNet{gates: map[string]*gate{}, conns: map[string][]net.Conn{}, dead: map[string]bool{}}
				m.via = f.dial(m)
				var mu sync.Mutex
				var took []time.Duration
				var failed []error
				var all sync.WaitGroup
				for i := range 4500 {
					switch i {
					case 1000:
						mu.Lock()
						took = nil // connections are established
						mu.Unlock()
						tt.fault(f, true)
					case 3500:
						tt.fault(f, false)
					}
					request := kinds["safe"]
					if i%2 == 1 {
						request = kinds["marked"]
					}
					all.Go(func() {
						began := time.Now()
						_, err := do(c, request())
						mu.Lock()
						defer mu.Unlock()
						took = append(took, time.Since(began))
						if err != nil {
							failed = append(failed, err)
						}
					})
					time.Sleep(every)
				}
				all.Wait()
				slices.Sort(took)
				s := c.Stats()
				extra := s.Sends - s.Requests
				t.Logf("%d failed of %d; p50 %v, p99 %v, worst %v; %d extra sends, %d dials", len(failed), s.Requests, took[len(took)/2], took[len(took)*99/100], took[len(took)-1], extra, s.Dials)
				if len(failed) > 0 {
					t.Errorf("%d requests failed, want none; first: %v", len(failed), failed[0])
				}
				if got := took[len(took)-1]; got > tt.worst {
					t.Errorf("the worst took %v, want at most %v", got, tt.worst)
				}
				if got := took[len(took)*99/100]; got > tt.p99 {
					t.Errorf("p99 is %v, want at most %v", got, tt.p99)
				}
				if extra > s.Requests/20 {
					t.Errorf("%d extra sends, want at most %d", extra, s.Requests/20)
				}
			})
		})
	}
}
