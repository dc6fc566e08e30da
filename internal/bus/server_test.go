package bus_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"math/rand"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// unitConn is a server for the units of an authority, and what it received.
type unitConn struct {
	*bus.Server
	ended chan error

	mu         sync.Mutex
	heartbeats map[wire.UnitID]int
	units      map[wire.UnitID]bus.Unit
	items      []bus.Item
}

// serve serves the bus for the units of an authority. Clients in these tests do not verify the
// manager's own certificate.
func serve(t testing.TB, a *bustest.Authority, edit func(*bus.ServerConfig)) *unitConn {
	t.Helper()
	own := a.Unit(bustest.Keys).Serving
	s := &unitConn{ended: make(chan error, 4096), heartbeats: map[wire.UnitID]int{}, units: map[wire.UnitID]bus.Unit{}}
	c := bus.ServerConfig{
		Address: "127.0.0.1:0", Certificate: func() (*tls.Certificate, error) { return &own, nil },
		Roots: a.Roots(), Clock: time.Now, Connections: 20,
		Ended: func(_ net.Addr, err error) { s.ended <- err },
		Handlers: bus.Handlers{
			Heartbeat: func(u bus.Unit, _ bus.Heartbeat) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.heartbeats[u.ID]++
				s.units[u.ID] = u
			},
			Item: func(_ bus.Unit, i bus.Item) {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.items = append(s.items, i)
			},
			Pull: func(_ context.Context, _ bus.Unit, id wire.SessionID) (bus.Item, bool) {
				return bus.Item{Kind: bus.Sealed, Session: id, Expiry: 1, Bytes: []byte("copy")}, id[0] != 0
			},
			Range: func() (bus.Range, error) { return bus.Range{First: 5, Count: 7}, nil },
		},
	}
	if edit != nil {
		edit(&c)
	}
	var err error
	if s.Server, err = bus.Listen(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

// config returns the TLS configuration of a client with a certificate.
func config(certificate tls.Certificate) *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, NextProtos: []string{bus.Protocol}, Certificates: []tls.Certificate{certificate}}
}

// raw connects a unit without [bus.Conn], so that a test can misbehave.
func raw(t testing.TB, s *unitConn, u bustest.Unit) *tls.Conn {
	t.Helper()
	c, err := tls.Dial("tcp", s.Address(), config(u.Signing))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// connect connects a unit with [bus.Connect].
func connect(t testing.TB, u bustest.Unit, urls string) *bus.Conn {
	t.Helper()
	c, err := bus.Connect(bus.Config{URL: urls, TLS: config(u.Signing)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	testworld.Eventually(t, "the unit is connected", c.Connected)
	return c
}

// frame encodes a frame of a kind.
func frame(kind byte, body ...byte) []byte {
	return append(append(binary.BigEndian.AppendUint16(nil, uint16(1+len(body))), kind), body...)
}

func url(s *unitConn) string { return "tls://" + s.Address() }

func TestOnlyUnitsComeIn(t *testing.T) {
	a, other := bustest.New(t), bustest.New(t)
	s := serve(t, a, nil)
	unit, member := a.Unit(bustest.Scoring), a.Member()
	alone, crossed := unit.Signing, unit.Signing
	alone.Certificate = alone.Certificate[:1]
	crossed.Certificate = [][]byte{crossed.Certificate[0], a.Unit(bustest.Keys).Signing.Certificate[1]}
	for _, c := range []struct {
		name        string
		certificate tls.Certificate
		want        wire.Reason // "": accepted
	}{
		{"a unit", unit.Signing, ""},
		{"a unit in a group", member.Signing, ""},
		{"a unit in a group, without the group root", through(member.Signing, 0, 2), ""},
		{"a unit in a group under the group root alone", through(member.Signing, 0, 1), wire.BadChain},
		{"a unit in a group under another's group-bus certificate", tls.Certificate{
			Certificate: [][]byte{member.Signing.Certificate[0], member.Signing.Certificate[1], other.Member().Signing.Certificate[2]}, PrivateKey: member.Signing.PrivateKey,
		}, wire.BadChain},
		{"a unit in a group behind another certificate", through(member.Signing, 0, 0, 2), wire.BadChain},
		{"the shared leaf of a role", member.Serving, wire.WrongKind},
		{"a unit of another authority", other.Unit(bustest.Scoring).Signing, wire.BadChain},
		{"the shared leaf", unit.Serving, wire.WrongKind},
		{"the authority's own leaf", a.AuthorityLeaf(), wire.BadChain},
		{"no cross-certificate", alone, wire.BadChain},
		{"another identity's cross-certificate", crossed, wire.BadChain},
		{"no certificate", tls.Certificate{}, wire.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			conn, err := tls.Dial("tcp", s.Address(), config(c.certificate))
			if err == nil {
				_, err = conn.Write(frame(4, bytes.Repeat([]byte{1}, 24)...))
				if err == nil {
					_, err = io.ReadFull(conn, make([]byte, 3))
				}
			}
			if (err == nil) != (c.want == "") {
				t.Fatalf("got %v, want to come in: %v", err, c.want == "")
			}
			if conn != nil {
				conn.Close()
			}
			if got := <-s.ended; c.want != "" && wire.ReasonOf(got) != c.want {
				t.Errorf("got %v, want %v", got, c.want)
			}
		})
	}
}

// through returns a certificate with a part of its chain, by index.
func through(c tls.Certificate, chain ...int) tls.Certificate {
	picked := tls.Certificate{PrivateKey: c.PrivateKey}
	for _, i := range chain {
		picked.Certificate = append(picked.Certificate, c.Certificate[i])
	}
	return picked
}

// TestMember: the server knows a unit in a group by group, role and the group's identity,
// whichever of its chains it presents.
func TestMember(t *testing.T) {
	a := bustest.New(t)
	m := a.Member()
	if m.Holder() != bustest.Group+"/"+bustest.Role || m.Task != "" || m.Identity == a.Unit(bustest.Scoring).Identity {
		t.Errorf("got %q, task %q, identity %v", m.Holder(), m.Task, m.Identity)
	}
	short, err := bus.UnitOf(bustest.Chain(t, through(m.Signing, 0, 2)), a.Roots(), time.Now())
	if err != nil || short.Cluster != m.Cluster || short.ID != m.ID || !bytes.Equal(short.Cross, m.Signing.Certificate[2]) {
		t.Errorf("without the group root: got %+v, %v", short, err)
	}
}

// TestOnlyOneProtocol: TLS below 1.3, plain text and a different ALPN protocol get no response.
func TestOnlyOneProtocol(t *testing.T) {
	a := bustest.New(t)
	s := serve(t, a, nil)
	u := a.Unit(bustest.Scoring)
	old, unnamed, named := config(u.Signing), config(u.Signing), config(u.Signing)
	old.MaxVersion, unnamed.NextProtos, named.NextProtos = tls.VersionTLS12, nil, []string{"h2"}
	for name, c := range map[string]*tls.Config{"TLS 1.2": old, "no protocol": unnamed, "another protocol": named} {
		conn, err := tls.Dial("tcp", s.Address(), c)
		if err == nil {
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(2 * time.Second)) // a server's refusal comes after the client's handshake
			_, _ = conn.Write(frame(4, bytes.Repeat([]byte{1}, 24)...))
			_, err = io.ReadFull(conn, make([]byte, 3))
		}
		if err == nil {
			t.Errorf("%s: got a response", name)
		}
	}
	plain, err := net.Dial("tcp", s.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	_, _ = plain.Write([]byte("CONNECT {}\r\nPING\r\n"))
	if b, _ := io.ReadAll(plain); bytes.Contains(b, []byte("PONG")) {
		t.Errorf("plain text: got %q", b)
	}
}

// TestCertificateDecides: the server takes a unit's identity, task and id from its certificate.
func TestCertificateDecides(t *testing.T) {
	a := bustest.New(t)
	s := serve(t, a, nil)
	for _, u := range []bustest.Unit{a.Unit(bustest.Scoring), a.Successor()} {
		c := connect(t, u, url(s))
		if err := c.SendHeartbeat(bus.Heartbeat{Address: "127.0.0.1:1"}); err != nil {
			t.Fatal(err)
		}
		testworld.Eventually(t, "the heartbeat is there", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.heartbeats[u.ID] > 0 })
		s.mu.Lock()
		got := s.units[u.ID]
		s.mu.Unlock()
		if got.Identity != u.Identity || got.Cluster != u.Cluster || got.Task != u.Task || got.Holder() != u.Task || got.Group != "" {
			t.Errorf("got %+v, want the unit of %s", got, u.Task)
		}
		leaf, err := x509.ParseCertificate(u.Signing.Certificate[0])
		if err != nil || got.ID != wire.UnitIDOf(leaf.RawSubjectPublicKeyInfo) || !got.NotAfter.Equal(leaf.NotAfter) {
			t.Errorf("got %v until %v, want the certificate's", got.ID, got.NotAfter)
		}
	}
}

// TestCertificateEndsConnection: a connection ends when the unit's certificate expires. The test
// needs real time, because the expiry is a date.
func TestCertificateEndsConnection(t *testing.T) {
	a := bustest.New(t)
	s := serve(t, a, nil)
	unit := a.Unit(bustest.Short)
	c := raw(t, s, unit)
	beats := time.NewTicker(500 * time.Millisecond)
	defer beats.Stop()
	go func() {
		for range beats.C {
			if _, err := c.Write(frame(1, make([]byte, 41)...)); err != nil {
				return
			}
		}
	}()
	_ = c.SetReadDeadline(unit.NotAfter.Add(3 * time.Second))
	got, _ := io.ReadAll(c)
	at := time.Now()
	if at.Before(unit.NotAfter) || at.After(unit.NotAfter.Add(2*time.Second)) {
		t.Fatalf("ended at %v, want at %v", at, unit.NotAfter)
	}
	if !bytes.HasSuffix(got, frame(7, []byte(wire.Expired)...)) {
		t.Errorf("got %x at the end, want the reason", got)
	}
	if err := <-s.ended; !errors.Is(err, wire.Expired) {
		t.Errorf("got %v, want %v", err, wire.Expired)
	}
	if _, err := tls.Dial("tcp", s.Address(), config(unit.Signing)); err == nil {
		if err := <-s.ended; !errors.Is(err, wire.BadChain) {
			t.Errorf("again: got %v, want %v", err, wire.BadChain)
		}
	}
}

// TestOneConnectionOfAUnit: a unit's new connection ends its old one.
func TestOneConnectionOfAUnit(t *testing.T) {
	a := bustest.New(t)
	s := serve(t, a, func(c *bus.ServerConfig) { c.Connections = 1 })
	unit := a.Unit(bustest.Scoring)
	first := raw(t, s, unit)
	testworld.Eventually(t, "the first is there", func() bool { return s.Connections() == 1 })
	raw(t, s, unit)
	_ = first.SetReadDeadline(time.Now().Add(2 * time.Second)) // before its silence ends it
	var slow net.Error
	if b, err := io.ReadAll(first); len(b) > 0 || errors.As(err, &slow) && slow.Timeout() {
		t.Errorf("the first: got %x, %v, want its end", b, err)
	}
	testworld.Eventually(t, "one is left", func() bool { return s.Connections() == 1 })
	full := raw(t, s, a.Unit(bustest.Scoring))
	if b, _ := io.ReadAll(full); !bytes.Equal(b, frame(7, []byte(wire.Overload)...)) {
		t.Errorf("one unit too many: got %x, want the reason", b)
	}
}

// TestHostileUnits: units that send arbitrary bytes lose their own connection, with a reason, and
// use bounded memory of the manager. Other units are not affected.
func TestHostileUnits(t *testing.T) {
	a := bustest.New(t)
	s := serve(t, a, nil)
	honest := connect(t, a.Unit(bustest.Scoring), url(s))
	if _, err := honest.FetchCopy(t.Context(), wire.SessionID{1}); err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 1<<20)
	rand.New(rand.NewSource(1)).Read(random)
	before := heap()
	for name, b := range map[string][]byte{
		"size 0":             {0, 0, 1},
		"size 2^16-1":        {0xff, 0xff, 1},
		"size 2^32-1":        {0xff, 0xff, 0xff, 0xff, 1},
		"a line of NATS":     []byte("PUB cohort.seal.x 9223372036854775807\r\nx"),
		"a kind of managers": frame(7, 'x'),
		"an unknown kind":    frame(200),
		"a cut heartbeat":    frame(1, 1, 2, 3),
		"random bytes":       random,
		"zeros":              make([]byte, 1<<20),
	} {
		c := raw(t, s, a.Unit(bustest.Keys))
		go func() { _, _ = c.Write(b) }()
		if err := <-s.ended; !errors.Is(err, wire.Malformed) {
			t.Errorf("%s: got %v, want %v", name, err, wire.Malformed)
		}
	}
	if grown := heap() - before; grown > 8<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	if _, err := honest.FetchCopy(t.Context(), wire.SessionID{2}); err != nil {
		t.Errorf("another unit: %v", err)
	}
}

// heap returns the heap memory in use, in bytes.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestSeveralManagers: a unit is connected to each of its managers. One of them relays; when that
// one is gone, another does.
func TestSeveralManagers(t *testing.T) {
	a := bustest.New(t)
	all := []*unitConn{serve(t, a, nil), serve(t, a, nil)}
	u := a.Unit(bustest.Scoring)
	c := connect(t, u, url(all[0])+","+url(all[1]))
	var heard atomic.Int64
	c.Subscribe(func(bus.Item) { heard.Add(1) })
	if err := c.SendHeartbeat(bus.Heartbeat{Address: "127.0.0.1:1", Ready: true}); err != nil {
		t.Fatal(err)
	}
	knows := func(s *unitConn) bool { s.mu.Lock(); defer s.mu.Unlock(); return s.heartbeats[u.ID] > 1 }
	testworld.Eventually(t, "both know the unit", func() bool { return knows(all[0]) && knows(all[1]) })
	item := bus.Item{Kind: bus.Sealed, Session: wire.SessionID{1}, Bytes: []byte("x")}
	relayed := func() *unitConn {
		var by *unitConn
		testworld.Eventually(t, "one manager is given what the unit seals", func() bool {
			_ = c.Publish(item) // repeated: items in transit to a lost manager are lost
			for _, s := range all {
				s.mu.Lock()
				if len(s.items) > 0 {
					by, s.items = s, nil
				}
				s.mu.Unlock()
			}
			return by != nil
		})
		return by
	}
	first := relayed()
	for _, s := range all {
		s.Push(u.Cluster, item.Append(nil))
	}
	testworld.Eventually(t, "the relay's push is heard", func() bool { return heard.Load() > 0 })
	if time.Sleep(100 * time.Millisecond); heard.Load() != 1 {
		t.Errorf("heard %d times, want once", heard.Load())
	}
	if r, err := c.AllocateRange(t.Context()); err != nil || r != (bus.Range{First: 5, Count: 7}) {
		t.Errorf("range: got %v, %v", r, err)
	}
	first.Stop()
	testworld.Eventually(t, "the other relays", func() bool {
		if !c.Connected() {
			return false
		}
		return relayed() != first
	})
	if _, err := c.FetchCopy(t.Context(), wire.SessionID{}); !errors.Is(err, wire.NotFound) {
		t.Errorf("no copy: got %v, want %v", err, wire.NotFound)
	}
	slices.DeleteFunc(all, func(s *unitConn) bool { return s == first })[0].Stop()
	testworld.Eventually(t, "none is there", func() bool { return !c.Connected() })
	if _, err := c.FetchCopy(t.Context(), wire.SessionID{1}); !errors.Is(err, wire.Unavailable) {
		t.Errorf("without a manager: got %v, want %v", err, wire.Unavailable)
	}
}

// TestPublishIsBounded: without a manager, a bounded number of items waits. They are published
// when a manager is reachable.
func TestPublishIsBounded(t *testing.T) {
	a := bustest.New(t)
	s := serve(t, a, nil)
	address := s.Address()
	s.Stop()
	c, err := bus.Connect(bus.Config{URL: "tls://" + address, TLS: config(a.Unit(bustest.Scoring).Signing)})
	if err != nil {
		t.Fatal(err)
	}
	item := bus.Item{Kind: bus.Sealed, Session: wire.SessionID{1}, Bytes: []byte("x")}
	waiting := 0
	for err == nil && waiting < 1<<16 {
		if err = c.Publish(item); err == nil {
			waiting++
		}
	}
	if !errors.Is(err, wire.Overload) || waiting != 4096 {
		t.Errorf("got %v after %d items, want %v after 4096", err, waiting, wire.Overload)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := c.PublishWithin(ctx, item); !errors.Is(err, wire.Overload) {
		t.Errorf("within 10 ms: got %v, want %v", err, wire.Overload)
	}
	if err := c.Publish(bus.Item{Kind: bus.Sealed}); !errors.Is(err, wire.Malformed) {
		t.Errorf("no bytes: got %v, want %v", err, wire.Malformed)
	}
	s = serve(t, a, func(sc *bus.ServerConfig) { sc.Address = address })
	testworld.Eventually(t, "all are published", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.items) == waiting })
	const last = 4000
	item.Bytes = make([]byte, 400)
	for range last {
		if err := c.PublishWithin(t.Context(), item); err != nil {
			t.Fatal(err)
		}
	}
	c.Close() // publishes the items that wait
	testworld.Eventually(t, "the last, too", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.items) == waiting+last })
}

func TestListenRefusals(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, address := range []string{"127.0.0.1", "127.0.0.1:70000", taken.Addr().String()} {
		s, err := bus.Listen(bus.ServerConfig{Address: address})
		if err == nil {
			s.Stop()
			t.Errorf("%q: got no error", address)
		}
	}
}
