package channel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
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
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// noon is when most tests happen.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// refused demands exactly this reason.
func refused(t testing.TB, err error, want wire.Reason) {
	t.Helper()
	if err == nil {
		t.Fatalf("got no error, want reason %q", want)
	}
	if got := wire.ReasonOf(err); got != want {
		t.Fatalf("got reason %q (%v), want %q", got, err, want)
	}
}

// world is an authority with its policy, played with the real packages below.
type world struct {
	t      testing.TB
	owner  ssh.Signer
	vendor *attesttest.Vendor
	keys   *identity.Keys
	policy policy.Approved
	issuer *identity.Issuer
	ring   identity.Ring

	mu  sync.Mutex // guards now
	now time.Time
}

const policyText = `schema = "cohort/policy/v1"
trust_domain = "clinic.example"
sequence = 1
previous = ""
created = 2026-11-22T09:00:00Z
development = true
[owners]
quorum = 1
approve_within = "24h"
delay = "0s"
keys = [ { name = "ana", ssh = "OWNER" } ]
[platform.soft]
roots = ["VENDOR"]
[authority]
root = "ROOT"
reference = [ { platform = "soft", program = "AUTHORITY" } ]
[task.other]
key_mode = "shared"
names = ["other.clinic.example"]
[task.other.release."1"]
reference = [ { platform = "soft", program = "OTHER" } ]
[task.scoring]
key_mode = "shared"
names = ["scoring.clinic.example"]
life = "1h"
[task.scoring.release."1"]
reference = [ { platform = "soft", program = "SCORING1" } ]
[task.scoring.release."2"]
reference = [ { platform = "soft", program = "SCORING2" } ]
continues = "1"
`

func newWorld(t testing.TB) *world {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, owner: must(ssh.NewSignerFromKey(key)), vendor: attesttest.NewVendor(), keys: must(identity.Derive(identity.NewSecret())), now: noon}
	program := func(name string) string { return wire.Sum([]byte(name)).String() }
	text := strings.NewReplacer("OWNER", strings.TrimSpace(string(ssh.MarshalAuthorizedKey(w.owner.PublicKey()))),
		"VENDOR", w.vendor.Root().String(), "ROOT", w.keys.Root().String(),
		"AUTHORITY", program("authority"), "OTHER", program("other"), "SCORING1", program("scoring 1"), "SCORING2", program("scoring 2"),
	).Replace(policyText)
	w.policy = must(policy.Genesis(wire.Sum([]byte(text)), w.step(text)))
	w.issuer = must(w.keys.Issuer(w.policy))
	w.ring = identity.Ring{Strict: identity.NewRingKeys(noon, time.Hour), Follow: identity.NewRingKeys(noon, time.Hour)}
	return w
}

func (w *world) step(text string) policy.Step {
	return policy.Step{Policy: []byte(text), Signatures: []string{must(policy.Sign(w.owner, policy.ForPolicy, []byte(text)))}}
}

// next is the policy that follows, unchanged but for its sequence.
func (w *world) next() policy.Approved {
	doc := w.policy.Document()
	text := strings.Replace(string(doc.Raw()), "sequence = 1\nprevious = \"\"", fmt.Sprintf("sequence = 2\nprevious = %q", doc.Digest()), 1)
	return must(w.policy.Next(w.step(text)))
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) pass(d time.Duration) time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
	return w.now
}

func (w *world) root() *x509.Certificate {
	return must(x509.ParseCertificate(w.issuer.AuthorityRoot()))
}

func (w *world) trust() Trust {
	return Trust{Policy: w.policy, Root: w.root(), Verifier: attesttest.Verifier()}
}

// Trust and Renew make the world a Truster.
func (w *world) Trust() Trust                { return w.trust() }
func (w *world) Renew(context.Context) Trust { return w.trust() }

func (w *world) device(program string) *attesttest.Device {
	return w.vendor.Chip().Attester(attesttest.Measure(program))
}

func (w *world) grant(task, program string) policy.Grant {
	w.t.Helper()
	data := attest.Bind(wire.LabelIssue, []byte("test"))
	evidence := must(w.device(program).Attest(context.Background(), data))
	result := must(attesttest.Verifier().Appraise(attest.Question{Evidence: evidence, ReportData: data, Rules: w.policy.Rules(), At: noon}))
	return must(w.policy.Admit(task, result))
}

func (w *world) id(release string) attest.Digest {
	return must(identity.ReleaseID(w.policy, "scoring", release))
}

func (w *world) byTask() Pin { return Pin{Genesis: w.policy.Genesis(), Task: "scoring"} }
func (w *world) byID() Pin   { return Pin{Genesis: w.policy.Genesis(), ID: w.id("1")} }

func newKey() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) }

// standing is that of a unit of scoring with this key.
func (w *world) standing(key *ecdsa.PrivateKey, release string) Standing {
	w.t.Helper()
	leaf := must(w.issuer.Unit(w.grant("scoring", "scoring "+release), key.Public(), w.clock()))
	return Standing{
		Task: "scoring", Identity: w.id(release), Genesis: w.policy.Genesis(), Root: w.keys.Root(), Head: w.policy.Head(),
		Unit: leaf.DER, Cross: must(w.issuer.Identity("scoring", release)).Cross, NotAfter: leaf.NotAfter, Ring: copyRing(w.ring),
	}
}

// copyRing is what a report carries: a unit owns its copy.
func copyRing(r identity.Ring) identity.Ring {
	keys := func(k identity.RingKeys) identity.RingKeys {
		for _, p := range []**identity.RingKey{&k.Previous, &k.Current, &k.Next} {
			if *p != nil {
				*p = must(identity.OpenRingKey((*p).Expose(), (*p).End()))
			}
		}
		return k
	}
	r.Strict, r.Follow, r.Inherited.Keys = keys(r.Strict), keys(r.Follow), keys(r.Inherited.Keys)
	return r
}

// host is a unit of scoring 1.
func (w *world) host(limits Limits) *Host {
	w.t.Helper()
	key := newKey()
	h := must(NewHost(key, limits))
	if err := h.Update(w.standing(key, "1")); err != nil {
		w.t.Fatal(err)
	}
	return h
}

// opened opens a session at a host and gives both ends.
func (w *world) opened(h *Host, pin Pin) (*Session, []byte) {
	w.t.Helper()
	o := must(NewOpening(pin, 0))
	a := must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, w.clock()))
	answer, sealed, err := a.Finish(attest.Evidence{})
	if err != nil {
		w.t.Fatal(err)
	}
	return must(o.Finish(answer, w.trust(), w.clock())), sealed
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
	c.t.Helper()
	u := &unit{Host: c.host(c.limit)}
	u.server = must(NewServer(ServerConfig{Host: u.Host, App: c.app, Relay: &relay{c, u}, Attester: c.device("scoring 1"),
		RingUnknown: func() { c.mu.Lock(); defer c.mu.Unlock(); c.rings++ }, Clock: c.clock, Log: slog.New(slog.DiscardHandler)}))
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

func (r *relay) Push(kind Pushed, sealed []byte) {
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
		if kind == PushTombstone {
			join = u.Bury
		}
		id, err := join(sealed, r.c.clock())
		if err != nil && !errors.Is(err, wire.UnknownRing) {
			r.c.t.Errorf("pushing: %v", err)
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
	c.t.Helper()
	t := must(NewTransport(TransportConfig{Gateway: must(url.Parse("http://gateway.example")), Inner: c, Pin: pin, Wants: wants, Trust: c.world, Clock: c.clock}))
	c.t.Cleanup(func() {
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
	r := must(http.NewRequest(method, base+path, strings.NewReader(body)))
	answer, err := rt.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	return string(b), err
}

var noGateway = must(url.Parse("http://gateway.example"))
