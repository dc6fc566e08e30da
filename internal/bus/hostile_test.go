package bus_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"math/rand"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// twin starts a manager that calls do with each unit's connection.
func twin(t *testing.T, a *bustest.Authority, do func(net.Conn)) (address string) {
	t.Helper()
	own := a.Unit(bustest.Keys).Serving
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{own}, NextProtos: []string{bus.Protocol}, ClientAuth: tls.RequestClientCert})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				if c.(*tls.Conn).Handshake() == nil {
					do(c)
				}
			})
		}
	})
	return l.Addr().String()
}

// TestHostileManager: a manager that sends arbitrary bytes loses its connection, with a reason.
// The unit uses bounded memory, reconnects with growing pauses, and its other manager relays as
// before.
func TestHostileManager(t *testing.T) {
	a := bustest.New(t)
	honest := serve(t, a, nil)
	random := make([]byte, 1<<20)
	rand.New(rand.NewSource(1)).Read(random)
	huge := func(size string) []byte {
		return append([]byte(`INFO {"server_id":"x","max_payload":131072}`+"\r\nMSG cohort.push.x 1 "+size+"\r\n"), make([]byte, 1<<20)...)
	}
	for _, row := range []struct {
		name string
		b    []byte
		want wire.Reason
	}{
		{"a message of NATS of 2^63-1 bytes", huge("9223372036854775807"), wire.Malformed},
		{"a message of NATS of 2·10^9 bytes", huge("2000000000"), wire.Malformed},
		{"size 0", []byte{0, 0}, wire.Malformed},
		{"size 8191", append([]byte{0x1f, 0xff}, make([]byte, 8191)...), wire.Malformed},
		{"size 2^16-1", append([]byte{0xff, 0xff}, make([]byte, 1<<16)...), wire.Malformed},
		{"sizes of 2^31, 2^32-1, 2^63 and 2^64-1", bytes.Repeat([]byte{0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}, 1<<12), wire.Malformed},
		{"a kind that only units send", frame(4, make([]byte, 24)...), wire.Malformed},
		{"an unknown kind", frame(99, 1, 2, 3), wire.Malformed},
		{"a range that wraps", frame(2, bytes.Repeat([]byte{0xff}, 16)...), wire.Malformed},
		{"a hint of garbage", frame(7, 0, 1, 2), wire.Malformed},
		{"a hint", frame(7, []byte("overload")...), wire.Unavailable},
		{"random bytes", random, wire.Malformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			var dialled atomic.Int64
			address := twin(t, a, func(c net.Conn) {
				dialled.Add(1)
				_, _ = c.Write(row.b)
				_, _ = io.Copy(io.Discard, c)
			})
			u := a.Unit(bustest.Scoring)
			ended := make(chan error, 1000)
			before := heap()
			c, err := bus.Connect(bus.Config{URL: "tls://" + address + "," + url(honest), TLS: config(u.Signing), Ended: func(_ string, err error) { ended <- err }})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			var heard atomic.Int64
			c.Subscribe(func(i bus.Item) {
				if i.Session == (wire.SessionID{9}) {
					heard.Add(1)
				}
			})
			if err := <-ended; !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			testworld.Eventually(t, "the other manager relays", func() bool {
				honest.Push(u.Cluster, bus.Item{Kind: bus.Sealed, Session: wire.SessionID{9}, Bytes: []byte("x")}.Append(nil))
				return heard.Load() > 0
			})
			if grown := heap() - before; grown > 16<<20 {
				t.Errorf("the heap grew by %d MiB", grown>>20)
			}
			if got := dialled.Load(); got > 30 {
				t.Errorf("connected %d times, want it to wait longer each time", got)
			}
		})
	}
}

// TestManagerThatNeverEnds: a manager pushes without end, and responds to every pull with a
// different session, a tombstone of a different session, or nothing. The unit uses bounded
// memory, and pulls end in time.
func TestManagerThatNeverEnds(t *testing.T) {
	a := bustest.New(t)
	body := make([]byte, 24+8+4096)
	flood := bytes.Join([][]byte{frame(3, body...), frame(5, body[:24]...), frame(6, body...), frame(2, make([]byte, 16)...), frame(1)}, nil)
	address := twin(t, a, func(c net.Conn) {
		for {
			if _, err := c.Write(flood); err != nil {
				return
			}
		}
	})
	before := heap()
	c := connect(t, a.Unit(bustest.Scoring), "tls://"+address)
	var heard atomic.Int64
	c.Subscribe(func(bus.Item) { heard.Add(1) })
	for range 200 {
		ctx, cancel := timeout(t, 5*time.Millisecond)
		if i, err := c.FetchCopy(ctx, wire.SessionID{7}); !errors.Is(err, wire.Unavailable) {
			t.Fatalf("pull: got %v, %v, want %v", i, err, wire.Unavailable)
		}
		cancel()
	}
	testworld.Eventually(t, "pushes are read", func() bool { return heard.Load() > 1000 })
	if grown := heap() - before; grown > 16<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

// TestSilentManager: a unit gives up a manager that sends or reads nothing after 4 seconds. Calls
// meanwhile end at their own deadlines.
func TestSilentManager(t *testing.T) {
	a := bustest.New(t)
	over := make(chan struct{})
	address := twin(t, a, func(net.Conn) { <-over })
	t.Cleanup(func() { close(over) })
	ended := make(chan error, 10)
	c, err := bus.Connect(bus.Config{URL: "tls://" + address, TLS: config(a.Unit(bustest.Scoring).Signing), Ended: func(_ string, err error) { ended <- err }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	testworld.Eventually(t, "connected", c.Connected)
	begin := time.Now()
	ctx, cancel := timeout(t, 50*time.Millisecond)
	defer cancel()
	if _, err := c.AllocateRange(ctx); !errors.Is(err, wire.Unavailable) {
		t.Errorf("range: got %v, want %v", err, wire.Unavailable)
	}
	var slow net.Error
	if err := <-ended; !errors.As(err, &slow) || !slow.Timeout() {
		t.Errorf("got %v, want a timeout", err)
	}
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("given up after %v, want 4 s", took)
	}
}

// TestManagerOfAnotherName: a unit sends nothing to a manager whose certificate is not for the
// host in its URL, nor to one with a different protocol.
func TestManagerOfAnotherName(t *testing.T) {
	a := bustest.New(t)
	for name, edit := range map[string]func(*tls.Config){
		"another root":     func(c *tls.Config) { c.InsecureSkipVerify = false },
		"another protocol": func(*tls.Config) {},
	} {
		var got atomic.Int64
		own := a.Unit(bustest.Keys).Serving
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{own}})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				n, _ := io.Copy(io.Discard, c)
				got.Add(n)
				c.Close()
			}
		}()
		tlsConfig := config(a.Unit(bustest.Scoring).Signing)
		edit(tlsConfig)
		ended := make(chan error, 100)
		c, err := bus.Connect(bus.Config{URL: "tls://" + l.Addr().String(), TLS: tlsConfig, Ended: func(_ string, err error) { ended <- err }})
		if err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err == nil || c.Connected() {
			t.Errorf("%s: got connected", name)
		}
		c.Close()
		l.Close()
		if got.Load() > 0 {
			t.Errorf("%s: got %d bytes", name, got.Load())
		}
	}
}

func timeout(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	t.Helper()
	return context.WithTimeout(t.Context(), d)
}
