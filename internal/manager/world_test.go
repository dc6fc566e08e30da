package manager

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/bus/natsd"
	"github.com/cohort-tee/cohort/internal/loopback"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// world is an authority and one manager with fixed addresses and a data directory.
type world struct {
	t         testing.TB
	authority *bustest.Authority
	config    Config
	gateway   string // host:port
	manager   *Manager
	idle      time.Duration // how long units keep idle connections; zero: for ever
	log       diary
	stop      func()
}

// diary is a log that tests can read.
type diary struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (d *diary) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.text.Write(b)
}

func (d *diary) says(text string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Contains(d.text.Bytes(), []byte(text))
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldOf(t, bustest.New(t), natsd.Join{})
}

// newWorldOf starts a further manager of an authority.
func newWorldOf(t testing.TB, a *bustest.Authority, join natsd.Join) *world {
	t.Helper()
	w := &world{t: t, authority: a, gateway: loopback.FreeAddress(t), config: Config{
		DataDir: t.TempDir(), Roots: []*x509.Certificate{a.Root}, BusAddress: loopback.FreeAddress(t), NATS: join,
	}}
	w.config.Log = slog.New(slog.NewTextHandler(&w.log, nil))
	w.start()
	t.Cleanup(func() { w.stop() })
	return w
}

// start runs the manager with its data directory.
func (w *world) start() {
	w.t.Helper()
	m, err := New(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("tcp", w.gateway)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Serve(ctx, l) }()
	w.manager = m
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("manager ended: %v", err)
		}
	})
	testworld.Eventually(w.t, "the manager serves", m.serving.Load)
}

// metrics returns the metrics as the operator reads them.
func (w *world) metrics() string {
	page := httptest.NewRecorder()
	w.manager.OperatorHandler().ServeHTTP(page, httptest.NewRequest(http.MethodGet, api.PathMetrics, nil))
	return page.Body.String()
}

// cool ends the time in which the gateway waits for units after its start.
func (w *world) cool() {
	past := time.Now().Add(-time.Minute)
	w.manager.gateway.warmUntil.Store(&past)
}

func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.start()
}

// connect connects a unit to the bus.
func (w *world) connect(u bustest.Unit) *bus.Conn {
	w.t.Helper()
	pem, err := os.ReadFile(selfsigned.CAFile(w.config.DataDir))
	if err != nil {
		w.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c, err := bus.Connect(bus.Config{
		URL: "tls://" + w.config.BusAddress,
		TLS: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{u.Signing}},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(c.Close)
	testworld.Eventually(w.t, "the unit is on the bus", c.Connected)
	return c
}

// replica is a unit that serves requests and sends heartbeats.
type replica struct {
	bustest.Unit
	conn    *bus.Conn
	server  *http.Server
	listens string // address
	calls   atomic.Int64
	conns   atomic.Int64                  // of the gateway
	claims  atomic.Pointer[bus.Heartbeat] // its heartbeat
	hush    func()                        // stops its heartbeats
	vanish  func()                        // also accepts no new connections; existing ones stay
	kill    func()                        // also closes existing connections
}

// replica starts a unit of a task, which counts every request and then calls h.
func (w *world) replica(task string, h http.HandlerFunc) *replica {
	w.t.Helper()
	return w.replicaOf(w.authority.Unit(task), h)
}

func (w *world) replicaOf(u bustest.Unit, h http.HandlerFunc) *replica {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	r := &replica{Unit: u, listens: l.Addr().String()}
	r.claims.Store(&bus.Heartbeat{Address: l.Addr().String(), Ready: true})
	r.server = &http.Server{
		IdleTimeout: w.idle,
		ErrorLog:    slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ConnState:   r.count,
		TLSConfig:   &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{r.Serving}},
		Handler: http.HandlerFunc(func(rw http.ResponseWriter, rq *http.Request) {
			r.calls.Add(1)
			h(rw, rq)
		}),
	}
	go r.server.ServeTLS(l, "", "")
	r.conn = w.connect(r.Unit)
	ctx, cancel := context.WithCancel(context.Background())
	r.hush = sync.OnceFunc(func() { cancel(); r.conn.Close() })
	r.vanish = func() { r.hush(); l.Close() }
	r.kill = func() { r.vanish(); r.server.Close() }
	w.t.Cleanup(r.kill)
	go r.beat(ctx)
	w.known(r)
	return r
}

// count updates conns.
func (r *replica) count(_ net.Conn, s http.ConnState) {
	switch s {
	case http.StateNew:
		r.conns.Add(1)
	case http.StateClosed, http.StateHijacked:
		r.conns.Add(-1)
	}
}

func (r *replica) beat(ctx context.Context) {
	for {
		_ = r.conn.SendHeartbeat(*r.claims.Load())
		select {
		case <-ctx.Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// claim changes the unit's heartbeat, and waits until the manager has received it.
func (w *world) claim(r *replica, edit func(*bus.Heartbeat)) {
	w.t.Helper()
	b := *r.claims.Load()
	edit(&b)
	r.claims.Store(&b)
	w.known(r)
}

// known waits until the manager has the unit's current heartbeat and, if its address is the real
// one, its names.
func (w *world) known(r *replica) {
	w.t.Helper()
	want := *r.claims.Load()
	testworld.Eventually(w.t, "the unit is known", func() bool {
		w.manager.registry.mu.RLock()
		defer w.manager.registry.mu.RUnlock()
		m := w.manager.registry.units[r.ID]
		if m == nil {
			return false
		}
		got := m.heartbeat
		got.Relay = false
		return got == want && (want.Address != r.listens || m.names.Load() != nil)
	})
}

// names responds with the unit's id.
func (r *replica) names(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, r.ID.String()) }

// named starts a unit that responds with its id.
func (w *world) named(task string) *replica {
	w.t.Helper()
	return w.namedOf(w.authority.Unit(task))
}

func (w *world) namedOf(u bustest.Unit) *replica {
	w.t.Helper()
	var r *replica
	var ready sync.WaitGroup
	ready.Add(1)
	r = w.replicaOf(u, func(rw http.ResponseWriter, rq *http.Request) { ready.Wait(); r.names(rw, rq) })
	ready.Done()
	return r
}

// client sends requests to the gateway, with a task's host name.
type client struct {
	http *http.Client
	url  string
	host string
	more http.Header // added to each request
}

func (w *world) client(host string) client {
	transport := &http.Transport{}
	w.t.Cleanup(transport.CloseIdleConnections)
	return client{http: &http.Client{Transport: transport, Timeout: 30 * time.Second}, url: "http://" + w.gateway, host: host}
}

// post sends a body to a path of the gateway.
func (c client) post(t testing.TB, path string, body io.Reader) (*http.Response, error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	r.Host = c.host
	maps.Copy(r.Header, c.more)
	r.Header.Set("Content-Type", wire.TypeRequest)
	return c.http.Do(r)
}

// request sends a request of a session, and returns status, body and problem.
func (c client) request(t testing.TB, h wire.Header, content string) (int, string, api.Problem) {
	t.Helper()
	h.Number, h.NotAfter = 1, time.Now().Add(time.Minute)
	first := h.Encode()
	response, err := c.post(t, wire.PathRequest, bytes.NewReader(append(first[:], content...)))
	if err != nil {
		t.Fatalf("request: %v", err)
	}
	return read(t, response)
}

func read(t testing.TB, response *http.Response) (int, string, api.Problem) {
	t.Helper()
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("answer: %v", err)
	}
	var p api.Problem
	_ = json.Unmarshal(b, &p)
	return response.StatusCode, string(b), p
}

// header returns the outer header of a request to a unit, or to any unit.
func header(target wire.UnitID) []byte {
	b := wire.Header{Number: 1, NotAfter: time.Now().Add(time.Minute), Target: target}.Encode()
	return b[:]
}

// openBody returns an open request with a pin; a gateway reads no other part of it.
func openBody(kind, name string) []byte {
	pin := wire.Frame(wire.LabelPin, []byte(kind), []byte(name), make([]byte, 32))
	return wire.Frame(wire.LabelSessionOpen, []byte{1}, make([]byte, 1216), make([]byte, 32), pin, []byte{0}, nil)
}
