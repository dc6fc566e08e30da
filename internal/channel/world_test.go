package channel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// noon is when most tests happen.
var noon = testworld.Noon

// world is an authority with its policy, played with the real packages below.
type world struct {
	*testworld.World
	clock  *testworld.Clock
	keys   *identity.Keys
	policy policy.Approved
	issuer *identity.Issuer
	ring   identity.Ring

	mu      sync.Mutex                        // guards what tests change while units run: policy, issuer, ring
	signing map[wire.UnitID]*ecdsa.PrivateKey // of hosts
}

const tasks = `
[task.other]
key_mode = "shared"
names = ["other.clinic.example"]
[task.other.release."1"]
reference = [ { platform = "soft", program = "other" } ]
[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example"]
lifetime = "1h"
[task.scoring.release."1"]
reference = [ { platform = "soft", program = "scoring 1" } ]
[task.scoring.release."2"]
reference = [ { platform = "soft", program = "scoring 2" } ]
continues = "1"
`

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{World: testworld.New(t), signing: map[wire.UnitID]*ecdsa.PrivateKey{}, clock: testworld.NewClock(noon), keys: testworld.Must(identity.Derive(identity.NewSecret()))}
	w.policy = w.Found(w.keys.Root(), tasks).Policy()
	w.issuer = testworld.Must(w.keys.Issuer(w.policy))
	w.ring = identity.Ring{Strict: identity.NewRingKeys(noon, time.Hour), Follow: identity.NewRingKeys(noon, time.Hour)}
	return w
}

// next is the policy that follows, unchanged but for its sequence.
func (w *world) next() policy.Approved {
	return testworld.Must(w.policy.Next(w.Sign(w.After(w.policy))))
}

// unitClock is the clock of units.
func (w *world) unitClock() (time.Time, error) { return w.clock.Now(), nil }

// atNoon is the clock of a unit for which no time passes.
func atNoon() (time.Time, error) { return noon, nil }

func (w *world) root() *x509.Certificate {
	return testworld.Must(x509.ParseCertificate(w.issuer.AuthorityRoot()))
}

func (w *world) trust() Trust {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Trust{Policy: w.policy, Root: w.root(), Verifier: attesttest.Verifier()}
}

// Trust and Renew make the world a Truster.
func (w *world) Trust() Trust                { return w.trust() }
func (w *world) Renew(context.Context) Trust { return w.trust() }

func (w *world) id(release string) attest.Digest {
	return testworld.Must(identity.ReleaseID(w.policy, "scoring", release))
}

func (w *world) byTask() Pin { return Pin{Genesis: w.policy.Genesis(), Task: "scoring"} }
func (w *world) byID() Pin   { return Pin{Genesis: w.policy.Genesis(), ID: w.id("1")} }

func newKey() *ecdsa.PrivateKey {
	return testworld.Must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

// standing is that of a unit of scoring with this key.
func (w *world) standing(key *ecdsa.PrivateKey, release string) Standing {
	w.T.Helper()
	leaf := testworld.Must(w.issuer.Unit(w.Grant(w.policy, "scoring", "scoring "+release, noon), key.Public(), w.clock.Now()))
	cross := testworld.Must(w.issuer.Identity("scoring", release)).Cross
	chain := []*x509.Certificate{testworld.Must(x509.ParseCertificate(leaf.DER)), testworld.Must(x509.ParseCertificate(cross))}
	peer := testworld.Must(identity.Check(chain, w.root(), identity.Expect{
		Policy: w.policy, Kinds: []identity.Kind{identity.KindUnit}, Use: identity.UseSigning, At: w.clock.Now(), IDs: []attest.Digest{w.id(release)},
	}))
	return Standing{
		Task: "scoring", Identity: w.id(release), Genesis: w.policy.Genesis(), Root: w.keys.Root(), Head: w.policy.Head(),
		Unit: leaf.DER, Cross: cross, NotAfter: leaf.NotAfter, Facts: peer.Facts(), Ring: copyRing(w.ring),
	}
}

// copyRing is what a report carries: a unit owns its copy.
func copyRing(r identity.Ring) identity.Ring {
	keys := func(k identity.RingKeys) identity.RingKeys {
		for _, p := range []**identity.RingKey{&k.Previous, &k.Current, &k.Next} {
			if *p != nil {
				*p = testworld.Must(identity.OpenRingKey((*p).Expose(), (*p).End()))
			}
		}
		return k
	}
	r.Strict, r.Follow, r.Inherited.Keys = keys(r.Strict), keys(r.Follow), keys(r.Inherited.Keys)
	return r
}

// host is a unit of scoring 1.
func (w *world) host(limits Limits) *Host {
	w.T.Helper()
	key := newKey()
	h := testworld.Must(NewHost(key, limits))
	w.mu.Lock()
	w.signing[h.ID()] = key
	w.mu.Unlock()
	if err := h.Update(w.standing(key, "1")); err != nil {
		w.T.Fatal(err)
	}
	return h
}

// keyOf is the signing key of a host.
func (w *world) keyOf(h *Host) *ecdsa.PrivateKey {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.signing[h.ID()]
}

// opened opens a session at a host and gives both ends.
func (w *world) opened(h *Host, pin Pin) (*Session, []byte) {
	w.T.Helper()
	o := testworld.Must(NewOpening(pin, 0))
	a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, w.clock.Now()))
	answer, sealed, err := a.Finish(attest.Evidence{}, w.clock.Now())
	if err != nil {
		w.T.Fatal(err)
	}
	return testworld.Must(o.Finish(answer, w.trust(), w.clock.Now())), sealed
}

// asked is a request of a session without content, sealed.
func asked(s *Session, method string, target wire.UnitID, notAfter time.Time) []byte {
	x := testworld.Must(s.NewRequest(RequestConfig{Target: target, NotAfter: notAfter}))
	return testworld.Must(x.Whole(bhttp.Head{Method: method, Scheme: "https", Authority: "scoring.clinic.example", Path: "/"}, nil))
}

// brought brings a request to a host, until its number is taken or refused.
func brought(h *Host, raw []byte, at time.Time) error {
	x, err := h.Open([wire.HeaderSize]byte(raw), bytes.NewReader(raw[wire.HeaderSize:]), at)
	if err != nil {
		return err
	}
	return x.Authenticate(nil, func() (time.Time, error) { return at, nil })
}

// unit is a host with its server, reached without a network.
type unit struct {
	*Host
	server *Server
	dead   bool
}

// cluster is a gateway and manager that do what they should, or what a test says.
type cluster struct {
	*world
	app   http.Handler
	limit Limits

	mu      sync.Mutex // guards all below
	units   []*unit
	turn    int
	number  uint64
	stored  map[wire.SessionID][]byte
	mute    bool // pushes and stores nothing
	late    int  // pulls that are not answered in time
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
	u.server = testworld.Must(NewServer(ServerConfig{Host: u.Host, App: c.app, Relay: &relay{c, u}, Attester: c.Device("scoring 1"),
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
		join := u.Join
		if kind == envelope.Tombstone {
			join = u.Bury
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

func (r *relay) Pull(_ context.Context, id wire.SessionID) ([]byte, error) {
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

// RoundTrip is the gateway.
func (c *cluster) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	c.outer++
	tampers := c.tampers
	c.mu.Unlock()
	if tampers != nil {
		if answer, err := tampers(r); answer != nil || err != nil {
			return answer, err
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
				answer := status(http.StatusMisdirectedRequest)
				answer.Header.Set(wire.FieldUnits, ids(alive))
				return answer, nil
			}
			u = alive[i]
		}
	}
	inner := r.Clone(r.Context())
	inner.Body = io.NopCloser(body)
	answer := serve(u.server, inner)
	answer.Header.Set(wire.FieldUnits, ids(alive))
	return answer, nil
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

// serve runs a handler and streams what it writes.
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
func (p *pipeWriter) WriteHeader(s int)   { p.status = s; p.begin() }
func (p *pipeWriter) Flush()              { p.begin() }
func (p *pipeWriter) Write(b []byte) (int, error) {
	p.begin()
	return p.w.Write(b)
}

// client is a transport to the cluster.
func (c *cluster) client(pin Pin, wants Wants) *Transport {
	c.T.Helper()
	t := testworld.Must(NewTransport(TransportConfig{Gateway: testworld.Must(url.Parse("http://gateway.example")), Inner: c, Pin: pin, Wants: wants, Trust: c.world, Clock: c.clock.Now}))
	c.T.Cleanup(func() {
		c.mu.Lock()
		c.tampers = nil
		c.mu.Unlock()
		t.Close(context.Background())
	})
	return t
}

const base = "https://scoring.clinic.example"

// say sends a request with a body and gives the body of the answer.
func say(t testing.TB, rt http.RoundTripper, method, path, body string) (string, error) {
	t.Helper()
	r := testworld.Must(http.NewRequest(method, base+path, strings.NewReader(body)))
	answer, err := rt.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	return string(b), err
}

var noGateway = testworld.Must(url.Parse("http://gateway.example"))
