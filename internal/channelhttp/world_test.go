package channelhttp

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Trust and Renew make the world a Truster.
func (w *world) Trust() unitauth.Trust { return w.trust() }

// unit is a host with its server, called without a network.
type unit struct {
	*channel.Host
	server *Server
	dead   bool
}

// cluster is a gateway and manager that are correct, except where a test changes them.
type cluster struct {
	*world
	app   http.Handler
	limit channel.Limits

	mu      sync.Mutex // guards the fields below
	units   []*unit
	turn    int
	number  uint64
	stored  map[wire.SessionID][]byte
	mute    bool // pushes nothing and stores nothing
	late    int  // requests for copies that get no response in time
	outer   int  // outer requests
	rings   int  // calls of RingUnknown
	tampers func(*http.Request) (*http.Response, error)
}

func newCluster(t testing.TB, n int, app http.Handler) *cluster {
	t.Helper()
	c := &cluster{world: newWorld(t), app: app, stored: map[wire.SessionID][]byte{}}
	for range n {
		c.start()
	}
	return c
}

func (c *cluster) start() *unit {
	c.T.Helper()
	u := &unit{Host: c.host(c.limit)}
	u.server = testworld.Must(NewServer(ServerConfig{Host: u.Host, App: c.app, Relay: &relay{c, u}, Serves: serves, Attester: c.Device("scoring 1"),
		RingUnknown: func() { c.mu.Lock(); defer c.mu.Unlock(); c.rings++ }, Clock: c.unitClock, Log: slog.New(slog.DiscardHandler)}))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.units = append(c.units, u)
	return u
}

// relay is the manager as one unit sees it.
type relay struct {
	c *cluster
	u *unit
}

func (r *relay) Number() uint64 {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	r.c.number++
	return r.c.number
}

func (r *relay) Push(kind envelope.Kind, sealed []byte) {
	r.c.mu.Lock()
	units, mute := slices.Clone(r.c.units), r.c.mute
	r.c.mu.Unlock()
	if mute {
		return
	}
	for _, u := range units {
		if u == r.u {
			continue
		}
		join := u.ImportSession
		if kind == envelope.Tombstone {
			join = u.Terminate
		}
		id, err := join(sealed, r.c.clock.Now())
		if err != nil && !errors.Is(err, wire.UnknownRing) {
			r.c.T.Errorf("pushing: %v", err)
		}
		r.c.mu.Lock()
		r.c.stored[id] = sealed
		r.c.mu.Unlock()
	}
}

func (r *relay) RequestCopy(_ context.Context, id wire.SessionID) ([]byte, error) {
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	if r.c.late > 0 {
		r.c.late--
		return nil, wire.Refuse(wire.Unavailable, "session", "no answer", "a copy")
	}
	if sealed := r.c.stored[id]; sealed != nil && !r.c.mute {
		return sealed, nil
	}
	return nil, wire.Refuse(wire.NotFound, "session", "none", "a copy")
}

// RoundTrip plays the gateway.
func (c *cluster) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.outer++
	tampers := c.tampers
	c.mu.Unlock()
	if tampers != nil {
		if response, err := tampers(r); response != nil || err != nil {
			return response, err
		}
	}
	return c.route(r)
}

func (c *cluster) route(r *http.Request) (*http.Response, error) {
	var first [wire.HeaderSize]byte
	body := io.Reader(r.Body)
	c.mu.Lock()
	var alive []*unit
	for _, u := range c.units {
		if !u.dead {
			alive = append(alive, u)
		}
	}
	c.turn++
	turn := c.turn
	c.mu.Unlock()
	if len(alive) == 0 {
		return status(http.StatusServiceUnavailable), nil
	}
	u := alive[turn%len(alive)]
	if r.URL.Path == wire.PathRequest {
		if _, err := io.ReadFull(r.Body, first[:]); err != nil {
			return nil, err
		}
		body = io.MultiReader(bytes.NewReader(first[:]), r.Body)
		h, err := wire.ParseHeader(first[:])
		if err != nil {
			return status(http.StatusBadRequest), nil
		}
		if h.Target != (wire.UnitID{}) {
			i := slices.IndexFunc(alive, func(u *unit) bool { return u.ID() == h.Target })
			if i < 0 {
				response := status(http.StatusMisdirectedRequest)
				response.Header.Set(wire.FieldUnits, ids(alive))
				return response, nil
			}
			u = alive[i]
		}
	}
	inner := r.Clone(r.Context())
	inner.Body = io.NopCloser(body)
	response := serve(u.server, inner)
	response.Header.Set(wire.FieldUnits, ids(alive))
	return response, nil
}

func ids(units []*unit) string {
	var list []string
	for _, u := range units {
		list = append(list, u.ID().String())
	}
	return strings.Join(list, ",")
}

func status(code int) *http.Response {
	return &http.Response{StatusCode: code, Header: http.Header{}, Body: http.NoBody}
}

// serve runs a handler and streams its response.
func serve(h http.Handler, r *http.Request) *http.Response {
	reader, writer := io.Pipe()
	p := &pipeWriter{header: http.Header{}, w: writer, began: make(chan struct{}), status: http.StatusOK}
	go func() {
		defer func() {
			if e := recover(); e != nil {
				if e != http.ErrAbortHandler {
					panic(e)
				}
				p.begin()
				writer.CloseWithError(io.ErrUnexpectedEOF)
				return
			}
			p.begin()
			writer.Close()
		}()
		h.ServeHTTP(p, r)
	}()
	<-p.began
	return &http.Response{StatusCode: p.status, Header: p.sent, Body: reader}
}

type pipeWriter struct {
	header, sent http.Header
	w            *io.PipeWriter
	status       int
	once         sync.Once
	began        chan struct{}
}

func (p *pipeWriter) begin() {
	p.once.Do(func() { p.sent = p.header.Clone(); close(p.began) })
}

func (p *pipeWriter) Header() http.Header { return p.header }

func (p *pipeWriter) WriteHeader(s int) { p.status = s; p.begin() }

func (p *pipeWriter) Flush() { p.begin() }

func (p *pipeWriter) Write(b []byte) (int, error) {
	p.begin()
	return p.w.Write(b)
}

// client returns a transport to the cluster.
func (c *cluster) client(pin unitauth.Pin, wants channel.SessionOptions) *Transport {
	c.T.Helper()
	t := testworld.Must(NewTransport(TransportConfig{Gateway: testworld.Must(url.Parse("http://gateway.example")), Inner: c, Pin: pin, Options: wants, Trust: c.world, Clock: c.clock.Now}))
	c.T.Cleanup(func() {
		c.mu.Lock()
		c.tampers = nil
		c.mu.Unlock()
		t.Close(context.Background())
	})
	return t
}

const base = "https://scoring.clinic.example"

// say sends a request with a body and returns the content of the response.
func say(t testing.TB, rt http.RoundTripper, method, path, body string) (string, error) {
	t.Helper()
	r := testworld.Must(http.NewRequest(method, base+path, strings.NewReader(body)))
	response, err := rt.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return string(b), err
}

var noGateway = testworld.Must(url.Parse("http://gateway.example"))

// serves reports whether an authority is of the units' task.
func serves(authority string) bool {
	return scoringPolicy.Serves("scoring", "", authority)
}

var scoringPolicy = &policyfile.Document{Tasks: map[string]*policyfile.Task{"scoring": {Names: []string{"scoring.clinic.example"}}}}
