package manager

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
	"github.com/cohort-tee/cohort/internal/manager/trustrelay"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// narrow returns a manager with small limits, which serves HTTP/1.1 in plain text or HTTP/2 over
// TLS.
func narrow(t *testing.T, major int) *world {
	w := newWorld(t)
	w.stop()
	n := stallers()
	w.config.Limits = Limits{Clients: 2 * n, InFlight: n * 3 / 4, PerUnit: n * 5 / 7, Reading: n * 3 / 4 * minCost}
	if major == 2 {
		var err error
		if w.config.Certificate, err = selfsigned.LoadOrCreate(w.config.DataDir, w.config.BusAddress, time.Now()); err != nil { // the bus uses it too
			t.Fatal(err)
		}
	}
	w.start()
	return w
}

// stallers returns how many requests stall at once: more than there are places for.
func stallers() int {
	if os.Getenv("COHORT_FULL") == "" {
		return 100 // each needs a handshake with the unit, and the machine is shared
	}
	return 350
}

// from returns a client at an address of this machine.
func (w *world) from(address string, major int) client {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	transport := &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		ForceAttemptHTTP2: major == 2,
	}
	w.t.Cleanup(transport.CloseIdleConnections)
	return client{
		http: &http.Client{Transport: transport, Timeout: 30 * time.Second},
		url:  map[int]string{1: "http://", 2: "https://"}[major] + w.gateway, host: bustest.DNSName(bustest.Scoring),
	}
}

// flow is a kind of request with its whole body.
type flow struct{ path, kind, body string }

func flows() []flow {
	return []flow{
		{wire.PathSession, wire.TypeSession, string(openBody("task", bustest.Scoring))},
		{wire.PathRequest, wire.TypeRequest, string(header(wire.UnitID{})) + strings.Repeat("x", 4000)},
		{wire.PathOneOff, wire.TypeOneOff, strings.Repeat("x", 4000)},
		{wire.PathOneOff, wire.TypeChunkedOneOff, strings.Repeat("x", 4000)},
	}
}

// send sends the first sent bytes of a flow's body. If that is not all of it, the rest is never
// sent.
func (f flow) send(ctx context.Context, c client, sent int) (*http.Response, error) {
	out, in := io.Pipe()
	stop := context.AfterFunc(ctx, func() { in.CloseWithError(context.Canceled) })
	go func() {
		_, _ = io.WriteString(in, f.body[:sent])
		if sent == len(f.body) {
			stop()
			in.Close()
		}
	}()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url+f.path, out)
	if err != nil {
		return nil, err
	}
	r.Host, r.ContentLength = c.host, int64(len(f.body))
	r.Header.Set("Content-Type", f.kind)
	for name := range c.more {
		r.Header.Set(name, c.more.Get(name))
	}
	return c.http.Do(r)
}

// stalls are the points at which a client stalls: how much of the body it sends.
var stalls = []struct {
	name string
	sent func(whole int) int
}{
	{"after the head", func(int) int { return 0 }},
	{"after the first byte", func(int) int { return 1 }},
	{"in the middle", func(n int) int { return n / 2 }},
	{"before the last byte", func(n int) int { return n - 1 }},
	{"before it reads the response", func(n int) int { return n }},
}

// TestStalls: many requests stall at each point, over either protocol, from one address and from
// many. An honest client is served, and all places are released afterwards.
func TestStalls(t *testing.T) {
	for _, major := range []int{1, 2} {
		w := narrow(t, major)
		endless := make([]byte, 64<<10)
		unit := w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			for r.Header.Get(wire.FieldTicket) != "" { // of a client that does not read
				if _, err := rw.Write(endless); err != nil {
					return
				}
			}
		})
		for _, addresses := range []int{1, stallers() / 7} {
			for _, at := range stalls {
				if os.Getenv("COHORT_FULL") == "" && (major == 2) != (addresses > 1) {
					continue // the short form runs the other two combinations
				}
				if testing.Short() && at.name != "in the middle" {
					continue // with the race detector the others take minutes
				}
				t.Run(fmt.Sprintf("HTTP/%d, %d addresses, %s", major, addresses, at.name), func(t *testing.T) {
					w.stalled(t, unit, major, addresses, at.sent)
				})
			}
		}
	}
}

// stalled runs stalling clients, and sends requests of an honest client meanwhile.
func (w *world) stalled(t *testing.T, unit *replica, major, addresses int, sent func(int) int) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	var begun, refused atomic.Int64
	for n := range stallers() {
		c := w.from(fmt.Sprint("127.0.1.", 1+n%addresses), major)
		c.more = http.Header{wire.FieldTicket: {"endless"}}
		f := flows()[n%4]
		all.Go(func() {
			begun.Add(1)
			for ctx.Err() == nil {
				response, err := f.send(ctx, c, sent(len(f.body)))
				if err != nil {
					continue
				}
				if response.StatusCode != http.StatusOK {
					refused.Add(1)
				} else {
					<-ctx.Done() // reads nothing
				}
				response.Body.Close()
				select {
				case <-time.After(3 * time.Second): // clients and gateway share this process
				case <-ctx.Done():
				}
			}
		})
	}
	g := w.manager.gateway
	last, same := int64(0), 0
	testworld.Eventually(t, "they stall", func() bool {
		time.Sleep(50 * time.Millisecond)
		before := last
		last = unit.conns.Load()
		if same++; last != before { // the gateway still makes connections for them
			same = 0
		}
		return begun.Load() == int64(stallers()) && g.reading.InUse()+g.slots.InUse() > 0 && same >= 10
	})
	honest := w.from("127.0.0.1", major)
	for range 5 {
		for _, f := range flows() {
			f.served(t, honest)
		}
	}
	if n := g.slots.InUse(); sent(1400) < 2 && n > 0 {
		t.Errorf("%d places are taken by requests that cannot be worked on", n)
	}
	t.Logf("%d bytes are read, %d requests under way, %d were refused", g.reading.InUse(), g.slots.InUse(), refused.Load())
	cancel()
	all.Wait()
	testworld.Eventually(t, "everything comes back", func() bool { return g.reading.InUse() == 0 && g.slots.InUse() == 0 })
}

// served sends a flow as an honest client, which repeats a request that reached no unit: on a
// busy machine a connection to the unit takes longer than the gateway waits. No quota may refuse
// it.
func (f flow) served(t *testing.T, c client) {
	t.Helper()
	for range 4 {
		response, err := f.send(t.Context(), c, len(f.body))
		if err != nil {
			t.Fatalf("honest %s: %v", f.path, err)
		}
		status, body, p := read(t, response)
		if status == http.StatusOK {
			return
		}
		if p.Reason != wire.Unavailable {
			t.Errorf("honest %s: got %d %s", f.path, status, body)
			return
		}
		t.Logf("honest %s: %s", f.path, body)
	}
	t.Errorf("honest %s: reached no unit", f.path)
}

// TestStallsEnd: requests that stall before they take a place end by themselves, over either
// protocol, with a reason where one can be sent.
func TestStallsEnd(t *testing.T) {
	for _, major := range []int{1, 2} {
		t.Run(fmt.Sprint("HTTP/", major), func(t *testing.T) {
			t.Parallel()
			w := narrow(t, major)
			var all sync.WaitGroup
			for _, f := range flows() {
				all.Go(func() {
					response, err := f.send(t.Context(), w.from("127.0.1.1", major), 1)
					if err != nil {
						t.Errorf("%s: %v", f.path, err)
						return
					}
					if status, body, p := read(t, response); status != http.StatusBadRequest || p.Reason != wire.BadRequest || !strings.Contains(p.Want, "within") {
						t.Errorf("%s: got %d %s, want 400 and how long it may take", f.path, status, body)
					}
				})
			}
			g := w.manager.gateway
			testworld.Eventually(t, "all are read", func() bool { return g.reading.InUse() >= len(flows())*minCost })
			if n := g.slots.InUse(); n > 0 {
				t.Errorf("got %d requests under way, want none of those that cannot be worked on", n)
			}
			all.Wait()
			if g.reading.InUse() != 0 || g.slots.InUse() != 0 {
				t.Errorf("got %d bytes read, %d requests under way, want none", g.reading.InUse(), g.slots.InUse())
			}
		})
	}
}

// TestQuotas: each refusal by a quota names the quota, and so does the metric.
func TestQuotas(t *testing.T) {
	w := newWorld(t)
	w.named(bustest.Scoring)
	g, other := w.manager.gateway, netip.MustParseAddr("192.0.2.1")
	now := time.Now()
	g.clock = func() time.Time { return now }
	full := func(what string) *limit.Shares {
		s := limit.NewShares(what, 2)
		if err := s.Acquire(netip.MustParseAddr("127.0.0.1"), 1); err != nil {
			t.Fatal(err)
		}
		return s
	}
	w.manager.registry.mu.RLock()
	var unit *backend
	for _, m := range w.manager.registry.units {
		unit = m
	}
	w.manager.registry.mu.RUnlock()
	for _, c := range []struct {
		quota  string
		set    func()
		flow   flow
		status int
	}{
		{quotaUnknown, func() {
			g.unknownSessions = limit.NewBuckets(1)
			g.unknownSessions.TakeToken("127.0.0.1:1", now)
			g.unknownSessions.TakeToken("127.0.0.1:1", now)
		}, flows()[1], http.StatusTooManyRequests},
		{quotaPerUnit, func() { unit.places = full(quotaPerUnit) }, flows()[0], http.StatusTooManyRequests},
		{quotaConnect, func() {
			unit.places, unit.dialTurns = limit.NewShares(quotaPerUnit, 9), limit.NewTurns(quotaConnect, 0, 0)
		}, flows()[0], http.StatusServiceUnavailable},
		{quotaInFlight, func() { g.slots = full(quotaInFlight); _ = g.slots.Acquire(other, 1) }, flows()[0], http.StatusServiceUnavailable},
		{quotaReading, func() { g.reading = limit.NewShares(quotaReading, minCost-1) }, flows()[2], http.StatusServiceUnavailable},
		{quotaExpensive, func() { g.expensive = limit.NewBuckets(0) }, flows()[0], http.StatusTooManyRequests},
		{quotaPages, func() { g.pages = full(quotaPages) }, flow{path: "/elsewhere"}, http.StatusTooManyRequests},
	} {
		c.set()
		response, err := c.flow.send(t.Context(), w.from("127.0.0.1", 1), len(c.flow.body))
		if err != nil {
			t.Fatal(err)
		}
		if status, body, p := read(t, response); status != c.status || !strings.HasPrefix(p.Rule, c.quota) {
			t.Errorf("%s: got %d %s, want %d", c.quota, status, body, c.status)
		}
	}
	w.manager.polls = full(quotaPolls)
	poll, refused := httptest.NewRequest(http.MethodGet, wire.PathHistory, nil), httptest.NewRecorder()
	poll.RemoteAddr = "127.0.0.1:1"
	err := w.manager.waitForStep(refused, poll, w.manager.mirror.current.Load(), time.Minute)
	if w.manager.metrics.countQuota(err); wire.ReasonOf(err) != wire.TooMany || refused.Header().Get("Retry-After") != "10" {
		t.Errorf("%s: got %v, Retry-After %q", quotaPolls, err, refused.Header().Get("Retry-After"))
	}
	page := w.metrics()
	for _, quota := range quotas {
		if quota == quotaPolls || slices.Contains(trustrelay.Quotas, quota) { // covered by TestGatewayPolls and by tests of trustrelay
			continue
		}
		if line := fmt.Sprintf("cohort_gateway_refused_total{quota=%q} 1\n", quota); !strings.Contains(page, line) {
			t.Errorf("metrics: want %s", line)
		}
	}
}

// TestUnknownSessions: requests of invented sessions from one address reach a unit at a bounded
// rate. Sessions that a unit serves are not limited.
func TestUnknownSessions(t *testing.T) {
	w := newWorld(t)
	real := wire.SessionID{1}
	var asked atomic.Int64 // requests of unknown sessions at the unit
	w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
		var raw [wire.HeaderSize]byte
		_, _ = io.ReadFull(r.Body, raw[:])
		if h, err := wire.ParseHeader(raw[:]); err != nil || h.Session != real {
			asked.Add(1)
			rw.WriteHeader(http.StatusPreconditionRequired)
		}
	})
	g, now := w.manager.gateway, time.Now()
	g.clock = func() time.Time { return now }
	c := w.client(bustest.DNSName(bustest.Scoring))
	for n := range 4 * w.manager.config.Limits.PerAddress / 10 {
		c.request(t, wire.Header{Session: wire.SessionID{2, byte(n), byte(n >> 8)}}, "x")
	}
	if got, want := asked.Load(), int64(2*w.manager.config.Limits.PerAddress/10); got != want {
		t.Errorf("units saw %d requests of made-up sessions, want %d", got, want)
	}
	if status, _, p := c.request(t, wire.Header{Session: real}, "x"); status != http.StatusTooManyRequests || p.Rule != quotaUnknown {
		t.Errorf("one more: got %d %q, want 429 %q", status, p.Rule, quotaUnknown)
	}
	now = now.Add(time.Second)
	for n := range 4 * w.manager.config.Limits.PerAddress / 10 {
		if status, _, p := c.request(t, wire.Header{Session: real}, "x"); status != http.StatusOK {
			t.Fatalf("request %d of a session that a unit serves: got %d %v", n, status, p)
		}
	}
	if status, _, _ := w.from("127.0.1.1", 1).request(t, wire.Header{Session: wire.SessionID{3}}, "x"); status != http.StatusPreconditionRequired {
		t.Errorf("another address: got %d, want the unit's 428", status)
	}
}

// TestOpenedSessions: a session that was opened through the gateway is known from its first
// request on, even before a copy of it arrives.
func TestOpenedSessions(t *testing.T) {
	w := newWorld(t)
	var number atomic.Uint32
	w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == wire.PathSession {
			id := wire.SessionID{1, byte(number.Load())}
			_, _ = rw.Write(wire.Frame(wire.LabelSessionResponse, make([]byte, 1120), id[:], make([]byte, 3000)))
		}
	})
	g, now := w.manager.gateway, time.Now()
	g.clock = func() time.Time { return now }
	g.unknownSessions = limit.NewBuckets(0)
	c := w.client(bustest.DNSName(bustest.Scoring))
	for n := range 20 {
		number.Store(uint32(n))
		response, err := c.post(t, wire.PathSession, strings.NewReader(flows()[0].body))
		if err != nil {
			t.Fatal(err)
		}
		read(t, response)
		if status, _, p := c.request(t, wire.Header{Session: wire.SessionID{1, byte(n)}}, "x"); status != http.StatusOK {
			t.Errorf("the first request of session %d: got %d %v", n, status, p)
		}
	}
	if status, _, p := c.request(t, wire.Header{Session: wire.SessionID{2}}, "x"); p.Rule != quotaUnknown {
		t.Errorf("another session: got %d %q, want %q", status, p.Rule, quotaUnknown)
	}
}

// TestVouched: the newest sessions are remembered, and no more than twice the bound.
func TestVouched(t *testing.T) {
	var v sessionSet
	for n := range 4 * maxKnownSessions {
		v.insert(wire.SessionID{byte(n), byte(n >> 8), byte(n >> 16)})
	}
	if n := len(v.recent) + len(v.previous); n > 2*maxKnownSessions {
		t.Errorf("got %d sessions kept, want at most %d", n, 2*maxKnownSessions)
	}
	if n := 3*maxKnownSessions + 1; !v.contains(wire.SessionID{byte(n), byte(n >> 8), byte(n >> 16)}) || v.contains(wire.SessionID{}) {
		t.Error("the newest are not there, or the oldest are")
	}
}

// TestSenderName: a unit gets a stable name for the sender of an open request, which differs by
// address and does not reveal it; the client's own value is dropped. Other requests have no such
// name.
func TestSenderName(t *testing.T) {
	w := newWorld(t)
	names := make(chan []string, 1)
	w.replica(bustest.Scoring, func(_ http.ResponseWriter, r *http.Request) { names <- r.Header[wire.FieldSender] })
	ask := func(address string, f flow) []string {
		c := w.from(address, 1)
		c.more = http.Header{wire.FieldSender: {"made up"}}
		response, err := f.send(t.Context(), c, len(f.body))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		return <-names
	}
	open := flows()[0]
	a, again, b := ask("127.0.0.1", open), ask("127.0.0.1", open), ask("127.0.1.1", open)
	if len(a) != 1 || len(a[0]) != 16 || a[0] != again[0] || a[0] == b[0] {
		t.Errorf("got %q and %q of one address, %q of another", a, again, b)
	}
	for _, f := range flows()[1:] {
		if got := ask("127.0.0.1", f); got != nil {
			t.Errorf("%s: got %q, want none", f.path, got)
		}
	}
}

// TestKeptAlive: an HTTP/1.1 client keeps its connection after responses and after refusals by a
// unit or a quota, and loses no request to a connection that is being closed.
func TestKeptAlive(t *testing.T) {
	w := newWorld(t)
	w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
		if r.Header.Get(wire.FieldTicket) == "" {
			_, _ = io.Copy(io.Discard, r.Body)
		}
	})
	c := w.from("127.0.0.1", 1)
	var fresh atomic.Int64
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(g httptrace.GotConnInfo) {
		if !g.Reused {
			fresh.Add(1)
		}
	}})
	ask := func(f flow, want int) {
		t.Helper()
		response, err := f.send(ctx, c, len(f.body))
		if err != nil {
			t.Fatal(err)
		}
		if status, body, _ := read(t, response); status != want {
			t.Errorf("%s: got %d %s, want %d", f.path, status, body, want)
		}
	}
	for range 50 {
		for _, f := range flows() {
			ask(f, http.StatusOK)
		}
		ask(flow{wire.PathRequest, wire.TypeRequest, string(header(wire.UnitID{1})) + "rest"}, http.StatusMisdirectedRequest)
		ask(flow{wire.PathOneOff, "text/plain", "short"}, http.StatusBadRequest)
	}
	if got := fresh.Load(); got > 1 {
		t.Errorf("got %d connections for requests one after the other, want 1", got)
	}
	c.more = http.Header{wire.FieldTicket: {"unread"}} // the unit responds before it has read the request
	for range 50 {
		ask(flows()[1], http.StatusOK)
	}
}
