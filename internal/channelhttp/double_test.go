package channelhttp

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// hostile is a manager that controls everything between clients and units: gateway, relay,
// stored copies and numbers. By default it is honest; a behaviour replaces some of its
// functions. It never replaces a verifier: clients and units are real.
type hostile struct {
	*world
	app    *ledger
	does   behaviour
	honest atomic.Bool  // the behaviour has ended
	acts   atomic.Int64 // how often the behaviour has acted

	mu        sync.Mutex // guards the fields below
	units     []*unit
	turn      int
	number    uint64
	store     map[wire.SessionID][]byte
	pushes    []pushed              // all, in order
	asked     []carried             // all requests, in order
	last      map[string]said       // newest response to each user's requests
	opened    map[string][]said     // responses to each user's open requests
	users     map[string]*Transport // by name
	lied      map[string]bool       // things done once; see first
	elsewhere *hostile              // another cluster, created on first use
}

// behaviour is the set of functions that a hostile manager replaces; it is honest where one
// is nil.
type behaviour struct {
	name    string
	request func(*hostile, carried) said // handles a request in a session
	open    func(*hostile, carried) said
	push    func(*hostile, pushed)
	pull    func(*hostile, wire.SessionID) []byte
	number  func(*hostile) uint64
	after   func(*hostile) // at the end, between calls
	wants   channel.SessionOptions
	fails   calls  // the calls that may end in an error; all others must succeed
	opens   uint64 // sessions that a user needs, or many; 0 means 1: the session survives
}

// many means any number of sessions: at most one for each call.
const many = 1000

// calls are kinds of calls; zero means none.
type calls int

const (
	unmarked calls = iota + 1 // not safe and without Idempotency-Key
	all
)

// pushed is a unit's push to the relay.
type pushed struct {
	from   *unit
	kind   envelope.Kind
	sealed []byte
}

// carried is an outer request, read completely.
type carried struct {
	from   string // the user whose connection carried it
	path   string
	kind   string
	ticket string
	cookie string
	raw    []byte
	try    int // attempt of its call, from 1; 0 where attempts are not counted
}

func (q carried) header() wire.Header { return testworld.Must(wire.ParseHeader(q.raw)) }

// with returns the request with some of its bytes changed.
func (q carried) with(change func([]byte)) carried {
	q.raw = bytes.Clone(q.raw)
	change(q.raw)
	return q
}

// said is an outer response; nobody is a response that never arrives.
type said struct {
	status int
	fields http.Header
	body   []byte
	cut    bool
}

var nobody = said{}

func (a said) ok() bool { return a.status == http.StatusOK && !a.cut }

func (a said) with(change func([]byte) []byte) said {
	a.body = change(bytes.Clone(a.body))
	return a
}

// problemOf returns a response that the manager makes up.
func problemOf(status int) said { return said{status: status, fields: http.Header{}} }

// first reports whether this is the first call for a thing.
func (m *hostile) first(thing string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	done := m.lied[thing]
	m.lied[thing] = true
	return !done
}

// act counts one action of the behaviour.
func (m *hostile) act() { m.acts.Add(1) }

func newHostile(t testing.TB, does behaviour, units int) *hostile {
	t.Helper()
	m := &hostile{world: newWorld(t), app: &ledger{}, does: does, store: map[wire.SessionID][]byte{},
		last: map[string]said{}, opened: map[string][]said{}, users: map[string]*Transport{}, lied: map[string]bool{}}
	for range units {
		m.start()
	}
	return m
}

// start starts a unit that is new to the manager.
func (m *hostile) start() *unit {
	u := &unit{Host: m.host(channel.Limits{})}
	u.server = testworld.Must(NewServer(ServerConfig{Host: u.Host, App: m.app, Relay: &bus{m, u}, Serves: serves, Attester: m.Device("scoring 1"), RingUnknown: func() {}, Clock: m.unitClock, Log: slog.New(slog.DiscardHandler)}))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units = append(m.units, u)
	return u
}

func (m *hostile) all() []*unit {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.units)
}

// bus is the manager as one unit sees it.
type bus struct {
	m *hostile
	u *unit
}

func (b *bus) Number() uint64 {
	if b.m.does.number != nil && !b.m.honest.Load() {
		return b.m.does.number(b.m)
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	b.m.number++
	return b.m.number
}

func (b *bus) Push(kind envelope.Kind, sealed []byte) {
	p := pushed{b.u, kind, sealed}
	b.m.mu.Lock()
	b.m.pushes = append(b.m.pushes, p)
	b.m.mu.Unlock()
	if b.m.does.push != nil && !b.m.honest.Load() {
		b.m.does.push(b.m, p)
		return
	}
	b.m.relay(p)
}

func (b *bus) RequestCopy(_ context.Context, id wire.SessionID) ([]byte, error) {
	if b.m.does.pull != nil && !b.m.honest.Load() {
		return b.m.does.pull(b.m, id), nil
	}
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	return b.m.store[id], nil
}

// relay forwards a push to all other units and stores a copy.
func (m *hostile) relay(p pushed) {
	for _, u := range m.all() {
		if u != p.from {
			_ = u.take(p, m)
		}
	}
	if u, err := envelope.ParseSealed(p.kind, p.sealed); err == nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.store[u.Session] = p.sealed
	}
}

// take delivers a push to a unit, and returns the unit's error.
func (u *unit) take(p pushed, m *hostile) error {
	join := u.ImportSession
	if p.kind == envelope.Tombstone {
		join = u.Terminate
	}
	_, err := join(p.sealed, m.clock.Now())
	return err
}

// deliver delivers a request to a unit.
func (m *hostile) deliver(u *unit, q carried) (a said) {
	r := httptest.NewRequest(http.MethodPost, "http://unit"+q.path, bytes.NewReader(q.raw))
	r.Header.Set("Content-Type", q.kind)
	for field, value := range map[string]string{wire.FieldTicket: q.ticket, wire.FieldCookie: q.cookie} {
		if value != "" {
			r.Header.Set(field, value)
		}
	}
	w := httptest.NewRecorder()
	defer func() {
		if e := recover(); e != nil && e != http.ErrAbortHandler {
			panic(e)
		} else {
			a = said{status: w.Code, fields: w.Header(), body: w.Body.Bytes(), cut: e != nil}
		}
	}()
	u.server.ServeHTTP(w, r)
	return a
}

// route delivers a request to the unit that it is bound to, or to any unit.
func (m *hostile) route(q carried) said {
	units := m.all()
	m.mu.Lock()
	m.turn++
	u := units[m.turn%len(units)]
	m.mu.Unlock()
	if q.path == wire.PathRequest {
		if h, err := wire.ParseHeader(q.raw); err == nil && h.Target != (wire.UnitID{}) {
			i := slices.IndexFunc(units, func(u *unit) bool { return u.ID() == h.Target })
			if i < 0 {
				return problemOf(http.StatusMisdirectedRequest).naming(units)
			}
			u = units[i]
		}
	}
	return m.deliver(u, q).naming(units)
}

// naming adds the list of units to a response.
func (a said) naming(units []*unit) said {
	a.fields.Set(wire.FieldUnits, ids(units))
	return a
}

// door is the transport of one user to the manager.
type door struct {
	m    *hostile
	user string
}

// tryKey is the context key of a call's counter of attempts.
type tryKey struct{}

func (d *door) RoundTrip(r *http.Request) (*http.Response, error) {
	raw, err := io.ReadAll(r.Body)
	r.Body.Close()
	if err != nil {
		return nil, err
	}
	q := carried{from: d.user, path: r.URL.Path, kind: r.Header.Get("Content-Type"), ticket: r.Header.Get(wire.FieldTicket), cookie: r.Header.Get(wire.FieldCookie), raw: raw}
	if n, ok := r.Context().Value(tryKey{}).(*atomic.Int64); ok {
		q.try = int(n.Add(1))
	}
	response := d.m.answer(q)
	if response.status == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	body := io.Reader(bytes.NewReader(response.body))
	if response.cut {
		body = io.MultiReader(body, cutReader{})
	}
	return &http.Response{StatusCode: response.status, Header: response.fields.Clone(), Body: io.NopCloser(body)}, nil
}

type cutReader struct{}

func (cutReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// answer is the manager's response to a user's request.
func (m *hostile) answer(q carried) said {
	act := m.does.open
	if q.path == wire.PathRequest {
		act = m.does.request
		m.mu.Lock()
		m.asked = append(m.asked, q)
		m.mu.Unlock()
	}
	if act == nil || m.honest.Load() {
		act = (*hostile).route
	}
	a := act(m, q)
	m.mu.Lock()
	defer m.mu.Unlock()
	if q.path == wire.PathRequest {
		m.last[q.from] = a
	} else if a.ok() {
		m.opened[q.from] = append(m.opened[q.from], a)
	}
	return a
}

// user returns a client that uses the manager.
func (m *hostile) user(name string, wants channel.SessionOptions) *Transport {
	t := testworld.Must(NewTransport(TransportConfig{Gateway: testworld.Must(url.Parse("http://gateway.example")), Inner: &door{m, name}, Pin: m.byTask(), Options: wants, Trust: m.world, Clock: m.clock.Now}))
	m.mu.Lock()
	defer m.mu.Unlock()
	m.users[name] = t
	return t
}

// ticketOf returns the value of the header field with a user's ticket.
func (m *hostile) ticketOf(user string) string {
	return base64.RawURLEncoding.EncodeToString(testworld.Must(m.users[user].Session(m.T.Context())).Ticket())
}

// other returns the name of the other user.
func other(user string) string {
	if user == "alice" {
		return "bob"
	}
	return "alice"
}

// chainOf returns the certificate chain that a host signs with.
func (m *hostile) chainOf(h *channel.Host) []byte {
	signed, _, err := h.OHTTPKeys(unitauth.Pin{Task: "scoring"}, m.clock.Now())
	return testworld.Must(wire.Unframe(wire.LabelOneOffKeys, testworld.Must(signed, err), 8))[6]
}

// another returns a unit of the cluster that a request is not bound to.
func (m *hostile) another(q carried) *unit {
	for _, u := range m.all() {
		if u.ID() != q.header().Target {
			return u
		}
	}
	return nil
}

// refusal delivers a request that the unit must refuse, and returns the unit's response.
func (m *hostile) refusal(u *unit, q carried) said {
	m.act()
	a := m.deliver(u, q)
	if a.ok() {
		m.T.Errorf("%s: a unit answered to it", m.does.name)
	}
	return a
}

// refuse pushes to a unit what it must refuse for the given reason.
func (m *hostile) refuse(u *unit, kind envelope.Kind, sealed []byte, want wire.Reason) {
	m.act()
	if err := u.take(pushed{kind: kind, sealed: sealed}, m); wire.ReasonOf(err) != want {
		m.T.Errorf("%s: got %v, want %q", m.does.name, err, want)
	}
}

// history returns all pushes and requests so far.
func (m *hostile) history() ([]pushed, []carried) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.pushes), slices.Clone(m.asked)
}

// replay delivers every request so far to every unit again.
func (m *hostile) replay() {
	_, asked := m.history()
	for _, q := range asked {
		for _, u := range m.all() {
			m.act()
			m.deliver(u, q)
		}
	}
}

// chunksOf splits the bytes after a prefix into chunks.
func chunksOf(b []byte, prefix int) (chunks [][]byte) {
	for b = b[prefix:]; len(b) >= lengthSize; {
		n := lengthSize + int(binary.BigEndian.Uint32(b)&^finalBit)
		chunks, b = append(chunks, b[:n:n]), b[n:]
	}
	return chunks
}

// rechunked joins a prefix and chunks.
func rechunked(b []byte, prefix int, chunks ...[]byte) []byte {
	return append(bytes.Clone(b[:prefix]), bytes.Join(chunks, nil)...)
}
