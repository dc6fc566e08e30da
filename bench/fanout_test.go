package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/manager"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	natsserver "github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// fanout distributes bytes to many subscribers: publish sends the bytes, and each
// subscriber calls heard.Done when it receives them.
type fanout struct {
	publish func()
	heard   sync.WaitGroup
}

// publications is the number of publications in one cost.
const publications = 100

// round publishes a number of times. It returns the CPU time of this process, which runs
// server and subscribers, for one delivery to one of n subscribers, and the 99th percentile
// of the time until the last subscriber has received.
func (f *fanout) round(n int) (delivery, last time.Duration) {
	took := make([]time.Duration, publications)
	cpu := CPU()
	for i := range took {
		f.heard.Add(n)
		begin := time.Now()
		f.publish()
		f.heard.Wait()
		took[i] = time.Since(begin)
	}
	cpu = CPU() - cpu
	slices.Sort(took)
	return cpu / time.Duration(n*publications), took[publications*99/100]
}

// sealedItem returns an item of the size of a sealed session.
func sealedItem(of wire.Digest, n uint64) bus.Item {
	return itemAround(of, wire.SessionID{byte(n >> 8), byte(n), 1}, make([]byte, 300))
}

// itemAround wraps bytes as a session sealed by a unit of an identity, as far as a manager
// parses it.
func itemAround(of wire.Digest, id wire.SessionID, inside []byte) bus.Item {
	i := bus.Item{Kind: bus.Sealed, Session: id, Expiry: uint64(time.Now().Add(time.Hour).Unix())}
	bound := wire.Frame(wire.LabelSealed, []byte{1}, of[:], make([]byte, 16), id[:], wire.Uint64(i.Expiry), make([]byte, 16))
	i.Bytes = wire.Frame(wire.LabelSealedSession, bound, make([]byte, 12), inside)
	return i
}

// insideOf is the inverse of itemAround.
func insideOf(i bus.Item) []byte {
	var whole [3][]byte
	if err := wire.UnframeInto(whole[:], wire.LabelSealedSession, i.Bytes); err != nil {
		panic(err)
	}
	return whole[2]
}

// BenchmarkFanout is G11 and G12: the same bytes to N subscribers over a bare NATS server
// without TLS, over one with TLS, and as a sealed session from one unit to all units of its
// cluster, over TLS and the manager's relay, which keeps a copy. All connections are in one
// process. Where etcd is installed, it also reports the time until the last of N watchers
// of a key has received a put.
func BenchmarkFanout(b *testing.B) {
	for _, n := range []int{3, 30, 100, 300, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			bare, sealed, ours := bareFanout(b, n, nil), bareFanout(b, n, httptest.NewTLSServer(nil)), clusterFanout(b, n)
			b.Run("delivery", func(b *testing.B) {
				cost := func(f *fanout) func() time.Duration {
					return func() time.Duration { d, _ := f.round(n); return d }
				}
				Compare(b, Contender{"nats", cost(bare)}, Contender{"nats-tls", cost(sealed)}, Contender{"cohort", cost(ours)})
			})
			b.Run("last-p99", func(b *testing.B) {
				cost := func(f *fanout) func() time.Duration {
					return func() time.Duration { _, last := f.round(n); return last }
				}
				all := []Contender{{"nats", cost(bare)}, {"nats-tls", cost(sealed)}, {"cohort", cost(ours)}}
				if etcd := etcdFanout(b, n); etcd != nil {
					all = append(all, Contender{"etcd", cost(etcd)})
				}
				Compare(b, all...)
			})
		})
	}
}

// bareFanout returns a NATS server, with TLS and the certificate of certified unless that
// is nil.
func bareFanout(b *testing.B, n int, certified *httptest.Server) *fanout {
	b.Helper()
	options := &natsserver.Options{Host: "127.0.0.1", Port: natsserver.RANDOM_PORT, NoSigs: true, NoLog: true}
	var secure []nats.Option
	if certified != nil {
		certified.Close()
		roots := x509.NewCertPool()
		roots.AddCert(certified.Certificate())
		options.TLSConfig, options.TLS = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: certified.TLS.Certificates}, true
		secure = append(secure, nats.Secure(&tls.Config{RootCAs: roots, ServerName: "example.com"}))
	}
	s, err := natsserver.NewServer(options)
	if err != nil {
		b.Fatal(err)
	}
	s.Start()
	b.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		b.Fatal("the NATS server does not listen")
	}
	f := &fanout{}
	connect := func() *nats.Conn {
		nc, err := nats.Connect(s.ClientURL(), secure...)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(nc.Close)
		return nc
	}
	for range n {
		nc := connect()
		if _, err := nc.Subscribe("cohort.push", func(*nats.Msg) { f.heard.Done() }); err != nil {
			b.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			b.Fatal(err)
		}
	}
	speaker, bytes := connect(), sealedItem(wire.Digest{}, 0).Append(nil)
	f.publish = func() { _ = speaker.Publish("cohort.push", bytes) }
	return f
}

func clusterFanout(b *testing.B, n int) *fanout {
	b.Helper()
	w := newBusWorld(b)
	f := &fanout{}
	var speaker *bus.Conn
	var unit bustest.Unit
	for range n {
		speaker, unit = w.connect(b)
		speaker.Subscribe(func(bus.Item) { f.heard.Done() })
		joined(b, speaker)
	}
	var number uint64
	f.publish = func() { number++; _ = speaker.Publish(sealedItem(unit.Identity, number)) }
	return f
}

// BenchmarkColdOpen measures the time from a request whose session a unit does not have
// until it has it: it fetches the manager's copy over the bus, opens and installs it. The
// manager has ten thousand sessions.
func BenchmarkColdOpen(b *testing.B) {
	const known, rounds = 10_000, 5_000
	p := start(b)
	w := newBusWorld(b)
	opener, unit := w.connect(b)
	puller, _ := w.connect(b)
	joined(b, opener)
	joined(b, puller)
	lookup, h := p.estate.host(b), p.estate.host(b)
	var ids []wire.SessionID
	for _, sealed := range p.sealed(b, known) {
		id := testworld.Must(lookup.ImportSession(sealed, time.Now()))
		ids = append(ids, id)
		if err := opener.PublishWithin(b.Context(), itemAround(unit.Identity, id, sealed)); err != nil {
			b.Fatal(err)
		}
	}
	for { // until the last copy has arrived
		if _, err := puller.FetchCopy(b.Context(), ids[known-1]); err == nil {
			break
		}
	}
	for b.Loop() {
		took := make([]time.Duration, rounds)
		for i := range took {
			begin := time.Now()
			testworld.Must(h.ImportSession(insideOf(testworld.Must(puller.FetchCopy(b.Context(), ids[i]))), time.Now()))
			took[i] = time.Since(begin)
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[rounds/2].Microseconds()), "p50-µs")
		b.ReportMetric(float64(took[rounds*99/100].Microseconds()), "p99-µs")
		b.ReportMetric(0, "ns/op")
	}
}

// busWorld is a manager, and an authority whose units may connect to its bus.
type busWorld struct {
	authority *bustest.Authority
	address   string
	roots     *x509.CertPool
}

func newBusWorld(b *testing.B) *busWorld {
	b.Helper()
	w := &busWorld{authority: bustest.New(b), address: loopback.FreeAddress(b), roots: x509.NewCertPool()}
	config := manager.Config{DataDir: b.TempDir(), Roots: []*x509.Certificate{w.authority.Root}, BusAddress: w.address, Log: slog.New(slog.DiscardHandler)}
	m := testworld.Must(manager.New(config))
	l := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l) }()
	b.Cleanup(func() { cancel(); <-done })
	for !w.roots.AppendCertsFromPEM(readOrNil(selfsigned.CAFile(config.DataDir))) {
		time.Sleep(10 * time.Millisecond)
	}
	return w
}

// connect connects another unit of one task to the bus.
func (w *busWorld) connect(b *testing.B) (*bus.Conn, bustest.Unit) {
	b.Helper()
	u := w.authority.Unit(bustest.Scoring)
	c := testworld.Must(bus.Connect(bus.Config{
		URL: "tls://" + w.address,
		TLS: &tls.Config{RootCAs: w.roots, Certificates: []tls.Certificate{u.Signing}},
	}))
	b.Cleanup(c.Close)
	return c, u
}

// joined waits until a unit's subscription exists, which a response to a later request
// shows.
func joined(b *testing.B, c *bus.Conn) {
	b.Helper()
	for range 100 {
		ctx, cancel := context.WithTimeout(b.Context(), time.Second)
		_, err := c.AllocateRange(ctx)
		cancel()
		if err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.Fatal("a unit does not reach the bus")
}

func readOrNil(path string) []byte {
	text, _ := os.ReadFile(path)
	return text
}
