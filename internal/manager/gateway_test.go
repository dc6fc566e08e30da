package manager

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

func TestGatewayRoutesByTarget(t *testing.T) {
	w := newWorld(t)
	a, b := w.named(bustest.Scoring), w.named(bustest.Scoring)
	c := w.client(bustest.DNSName(bustest.Scoring))
	for range 5 {
		for _, r := range []*replica{a, b} {
			if _, got, _ := c.request(t, wire.Header{Target: r.ID}, "x"); got != r.ID.String() {
				t.Errorf("got %q, want %v", got, r.ID)
			}
		}
	}
}

func TestGatewaySpreadsUnboundRequests(t *testing.T) {
	w := newWorld(t)
	a, b := w.named(bustest.Scoring), w.named(bustest.Scoring)
	c := w.client(bustest.DNSName(bustest.Scoring))
	for range 60 {
		c.request(t, wire.Header{}, "x")
	}
	if a.calls.Load() < 10 || b.calls.Load() < 10 {
		t.Errorf("got %d and %d of 60 requests, want them spread", a.calls.Load(), b.calls.Load())
	}
}

func TestGatewayPrefersFewestInFlight(t *testing.T) {
	w := newWorld(t)
	hold, current := make(chan struct{}), make(chan struct{}, 1)
	busy := w.replica(bustest.Scoring, func(http.ResponseWriter, *http.Request) { current <- struct{}{}; <-hold })
	c := w.client(bustest.DNSName(bustest.Scoring))
	var wait sync.WaitGroup
	wait.Go(func() { c.request(t, wire.Header{Target: busy.ID}, "x") })
	<-current
	idle := w.named(bustest.Scoring)
	for range 10 {
		if _, got, _ := c.request(t, wire.Header{}, "x"); got != idle.ID.String() {
			t.Errorf("got %q, want %v", got, idle.ID)
		}
	}
	close(hold)
	wait.Wait()
}

func TestGatewayOpensByPinThenName(t *testing.T) {
	w := newWorld(t)
	scoring, keys := w.named(bustest.Scoring), w.named(bustest.Keys)
	for _, c := range []struct {
		name, host, kind, pin string
		want                  *replica
	}{
		{"task", "gateway.example", "task", bustest.Keys, keys},
		{"another task", "gateway.example", "task", bustest.Scoring, scoring},
		{"identity", bustest.DNSName(bustest.Keys), "id", string(scoring.Identity[:]), scoring},
		{"no pin that can be read, name", bustest.DNSName(bustest.Keys), "colour", "green", keys},
		{"no pin that can be read, name and port", strings.ToUpper(bustest.DNSName(bustest.Scoring)) + ".:443", "colour", "green", scoring},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 4 {
				response, err := w.client(c.host).post(t, wire.PathSession, bytes.NewReader(openBody(c.kind, c.pin)))
				if err != nil {
					t.Fatal(err)
				}
				if _, got, _ := read(t, response); got != c.want.ID.String() {
					t.Errorf("got %q, want %v", got, c.want.ID)
				}
			}
		})
	}
}

// TestGatewayOpensAtTheUnitThatIntroducedItself: an open request with a credential goes to the
// unit that it names, because only that unit can open the credential.
func TestGatewayOpensAtTheUnitThatIntroducedItself(t *testing.T) {
	w := newWorld(t)
	w.named(bustest.Scoring)
	second := w.named(bustest.Scoring)
	ask := func(unit string) (*http.Response, error) {
		c := w.client("gateway.example")
		c.more = http.Header{wire.FieldUnit: {unit}, wire.FieldCredential: {"c"}}
		return c.post(t, wire.PathSession, bytes.NewReader(openBody("task", bustest.Scoring)))
	}
	for range 8 {
		response, err := ask(second.ID.String())
		if err != nil {
			t.Fatal(err)
		}
		if _, got, _ := read(t, response); got != second.ID.String() {
			t.Errorf("got %q, want %v", got, second.ID)
		}
	}
	for unit, want := range map[string]int{wire.UnitID{1}.String(): http.StatusMisdirectedRequest, "x": http.StatusBadRequest} {
		response, err := ask(unit)
		if err != nil {
			t.Fatal(err)
		}
		if response.Body.Close(); response.StatusCode != want {
			t.Errorf("unit %s: got status %d, want %d", unit, response.StatusCode, want)
		}
	}
}

func TestGatewayFindsTheClusterOfASession(t *testing.T) {
	w := newWorld(t)
	scoring, keys := w.named(bustest.Scoring), w.named(bustest.Keys)
	stored := item(256, keys.Identity)
	session := stored.Session
	if err := keys.conn.Publish(stored); err != nil {
		t.Fatal(err)
	}
	testworld.Eventually(t, "the copy is kept", func() bool { return len(w.manager.copies.ClustersWith(session)) == 1 })
	for range 8 {
		if _, got, _ := w.client("gateway.example").request(t, wire.Header{Session: session}, "x"); got != keys.ID.String() {
			t.Errorf("got %q, want %v, not %v", got, keys.ID, scoring.ID)
		}
	}
}

// TestGatewayRoutesOneOffs: one-off requests are routed by identity, by task if no unit of that
// identity is ready, and by host name otherwise. A GET for keys keeps its query; a POST does not.
func TestGatewayRoutesOneOffs(t *testing.T) {
	w := newWorld(t)
	w.cool()
	var query atomic.Value
	ask := func(task string) *replica {
		var r *replica
		var ready sync.WaitGroup
		ready.Add(1)
		r = w.replica(task, func(rw http.ResponseWriter, rq *http.Request) {
			ready.Wait()
			query.Store(rq.Method + " " + rq.URL.RequestURI() + " " + rq.Header.Get("Accept"))
			r.names(rw, rq)
		})
		ready.Done()
		return r
	}
	scoring, keys := ask(bustest.Scoring), ask(bustest.Keys)
	id := scoring.Identity.Hex()
	for _, c := range []struct {
		name, host, query string
		want              *replica
	}{
		{"a task", "gateway.example", "?task=" + bustest.Keys, keys},
		{"an identity", "gateway.example", "?id=" + id, scoring},
		{"an identity before a task", "gateway.example", "?id=" + id + "&task=" + bustest.Keys, scoring},
		{"an identity that is gone", "gateway.example", "?id=" + strings.Repeat("ab", 32) + "&task=" + bustest.Keys, keys},
		{"a name", bustest.DNSName(bustest.Keys), "", keys},
	} {
		for method, passed := range map[string]string{http.MethodGet: c.query, http.MethodPost: ""} {
			r, _ := http.NewRequest(method, "http://"+w.gateway+wire.PathOneOff+c.query, strings.NewReader(strings.Repeat("x", capsuleSize)[:(len(method)-3)*capsuleSize]))
			r.Host = c.host
			r.Header.Set("Accept", wire.TypeKeys)
			response, err := w.client("").http.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			status, got, _ := read(t, response)
			if want := method + " " + wire.PathOneOff + passed + " " + wire.TypeKeys; status != http.StatusOK || got != c.want.ID.String() || query.Load() != want {
				t.Errorf("%s, %s: got %d %q, which saw %q, want %v and %q", method, c.name, status, got, query.Load(), c.want.ID, want)
			}
		}
	}
	for query, want := range map[string]int{"?id=green": http.StatusBadRequest, "?task=nobody": http.StatusServiceUnavailable, "?id=" + strings.Repeat("ab", 32): http.StatusServiceUnavailable} {
		response, err := w.client("").post(t, wire.PathOneOff+query, strings.NewReader("capsule"))
		if err != nil {
			t.Fatal(err)
		}
		if status, _, _ := read(t, response); status != want {
			t.Errorf("%s: got %d, want %d", query, status, want)
		}
	}
}

func TestGatewayRefusals(t *testing.T) {
	w := newWorld(t)
	unit := w.named(bustest.Scoring)
	w.cool()
	good, broken, lost := header(wire.UnitID{}), header(wire.UnitID{}), header(wire.UnitID{1})
	broken[0] = 9
	for _, c := range []struct {
		name, method, path string
		body               []byte
		status             int
		reason             wire.Reason
	}{
		{"another path", http.MethodPost, "/score", good, http.StatusNotFound, wire.NotFound},
		{"GET", http.MethodGet, wire.PathRequest, nil, http.StatusBadRequest, wire.BadRequest},
		{"no header", http.MethodPost, wire.PathRequest, nil, http.StatusBadRequest, wire.BadRequest},
		{"a cut header", http.MethodPost, wire.PathRequest, good[:57], http.StatusBadRequest, wire.BadRequest},
		{"another version", http.MethodPost, wire.PathRequest, broken, http.StatusBadRequest, wire.Malformed},
		{"an unknown unit", http.MethodPost, wire.PathRequest, lost, http.StatusMisdirectedRequest, wire.Misdirected},
		{"a long open request", http.MethodPost, wire.PathSession, make([]byte, maxOpen+1), http.StatusRequestEntityTooLarge, wire.TooLarge},
		{"an unknown task", http.MethodPost, wire.PathSession, openBody("task", "nobody"), http.StatusServiceUnavailable, wire.Unavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, err := http.NewRequest(c.method, "http://"+w.gateway+c.path, bytes.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			r.Host = bustest.DNSName(bustest.Scoring)
			response, err := w.client("").http.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			status, _, p := read(t, response)
			if status != c.status || p.Reason != c.reason {
				t.Errorf("got %d %q, want %d %q", status, p.Reason, c.status, c.reason)
			}
			if c.reason == wire.Misdirected && response.Header.Get(wire.FieldUnits) != unit.ID.String() {
				t.Errorf("%s: got %q, want %v", wire.FieldUnits, response.Header.Get(wire.FieldUnits), unit.ID)
			}
		})
	}
	if unit.calls.Load() != 0 {
		t.Errorf("the unit saw %d requests, want none", unit.calls.Load())
	}
}

func TestGatewayIsFull(t *testing.T) {
	w := newWorld(t)
	w.named(bustest.Scoring)
	slots := limit.NewShares(quotaInFlight, 1)
	w.manager.gateway.slots = slots
	if err := slots.Acquire(netip.Addr{}, 1); err != nil {
		t.Fatal(err)
	}
	c := w.client(bustest.DNSName(bustest.Scoring))
	if status, _, p := c.request(t, wire.Header{}, "x"); status != http.StatusServiceUnavailable || p.Reason != wire.Overload {
		t.Errorf("got %d %q, want 503 %q", status, p.Reason, wire.Overload)
	}
	slots.Release(netip.Addr{}, 1)
	if status, _, _ := c.request(t, wire.Header{}, "x"); status != http.StatusOK {
		t.Errorf("with room again: got %d", status)
	}
	if n := slots.InUse(); n != 0 {
		t.Errorf("got %d requests under way, want 0", n)
	}
}

// TestGatewayCountsWhatIsDear: a client that floods the gateway with open or one-off requests is
// refused before a unit receives them. Requests in open sessions still work.
func TestGatewayCountsWhatIsDear(t *testing.T) {
	w := newWorld(t)
	unit := w.named(bustest.Scoring)
	now := time.Now()
	w.manager.gateway.clock = func() time.Time { return now }
	w.manager.gateway.expensive = limit.NewBuckets(2)
	c := w.client(bustest.DNSName(bustest.Scoring))
	expensive := func(path string) int {
		response, err := c.post(t, path, strings.NewReader("capsule"))
		if err != nil {
			t.Fatal(err)
		}
		status, _, p := read(t, response)
		if limited := status == http.StatusTooManyRequests; limited != (p.Reason == wire.TooMany) || limited != (response.Header.Get("Retry-After") != "") {
			t.Errorf("got %d %q, Retry-After %q", status, p.Reason, response.Header.Get("Retry-After"))
		}
		return status
	}
	for i, path := range []string{wire.PathSession, wire.PathOneOff, wire.PathOneOff, wire.PathSession} {
		if got := expensive(path); got != http.StatusOK {
			t.Errorf("%d: got %d", i+1, got)
		}
	}
	for _, path := range []string{wire.PathSession, wire.PathOneOff} {
		if got := expensive(path); got != http.StatusTooManyRequests {
			t.Errorf("%s, one too many: got %d", path, got)
		}
	}
	if got := unit.calls.Load(); got != 4 {
		t.Errorf("the unit was asked %d times, want 4", got)
	}
	if status, _, _ := c.request(t, wire.Header{}, "x"); status != http.StatusOK {
		t.Errorf("in a session: got %d", status)
	}
	now = now.Add(time.Second)
	if got := expensive(wire.PathOneOff); got != http.StatusOK {
		t.Errorf("a second later: got %d", got)
	}
}

// TestGatewayPassesNoSecrets: the gateway forwards only the channel's header fields, in both
// directions.
func TestGatewayPassesNoSecrets(t *testing.T) {
	w := newWorld(t)
	var got http.Header
	w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
		got = r.Header
		rw.Header().Set("Set-Cookie", "a=b")
		rw.Header().Set("Content-Type", wire.TypeResponse)
		rw.Header().Set("Retry-After", "7")
		rw.Header().Set(wire.FieldUnits, "evil")
		rw.WriteHeader(http.StatusGone)
	})
	first := header(wire.UnitID{})
	r, _ := http.NewRequest(http.MethodPost, "http://"+w.gateway+wire.PathRequest, bytes.NewReader(first))
	for name, value := range map[string]string{"Cookie": "c=d", "Authorization": "Basic eA==", "X-Forwarded-For": "1.2.3.4", "Content-Type": wire.TypeRequest, wire.FieldTicket: "dGlja2V0"} {
		r.Header.Set(name, value)
	}
	response, err := w.client("").http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if len(got) != 3 || got.Get("Content-Length") != "58" || got.Get(wire.FieldTicket) != "dGlja2V0" || got.Get("Content-Type") != wire.TypeRequest {
		t.Errorf("the unit got %v", got)
	}
	for name, want := range map[string]string{"Set-Cookie": "", "Retry-After": "7", "Content-Type": wire.TypeResponse, "X-Accel-Buffering": "no", "Cache-Control": "no-store"} {
		if response.Header.Get(name) != want {
			t.Errorf("%s: got %q, want %q", name, response.Header.Get(name), want)
		}
	}
	if units := response.Header.Get(wire.FieldUnits); response.StatusCode != http.StatusGone || units == "evil" || len(units) != 32 {
		t.Errorf("got status %d and units %q", response.StatusCode, units)
	}
}

// TestGatewayStreamsBothWays sends and receives in turns within one request: each piece reaches
// the other side before the next is written.
func TestGatewayStreamsBothWays(t *testing.T) {
	w := newWorld(t)
	w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(rw)
		control.EnableFullDuplex()
		io.ReadFull(r.Body, make([]byte, wire.HeaderSize))
		for in := bufio.NewReader(r.Body); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			io.WriteString(rw, strings.ToUpper(line))
			control.Flush()
		}
	})
	out, in := io.Pipe()
	first := header(wire.UnitID{})
	go in.Write(append(first, "0\n"...))
	response, err := w.client("").post(t, wire.PathRequest, out)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	lines.ReadString('\n')
	for _, word := range []string{"one\n", "two\n", "three\n"} {
		io.WriteString(in, word)
		if got, err := lines.ReadString('\n'); got != strings.ToUpper(word) || err != nil {
			t.Fatalf("got %q, %v, want %q", got, err, strings.ToUpper(word))
		}
	}
	in.Close()
	if rest, err := io.ReadAll(lines); len(rest) != 0 || err != nil {
		t.Errorf("got %q, %v, want the end", rest, err)
	}
}

func TestGatewayPassesLargeBodies(t *testing.T) {
	w := newWorld(t)
	w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
		http.NewResponseController(rw).EnableFullDuplex()
		io.Copy(rw, r.Body)
	})
	content := make([]byte, 4<<20)
	rand.Read(content)
	first := header(wire.UnitID{})
	for name, body := range map[string]io.Reader{
		"of known length": bytes.NewReader(append(first, content...)),
		"in chunks":       io.MultiReader(bytes.NewReader(first), bytes.NewReader(content)),
	} {
		response, err := w.client("").post(t, wire.PathRequest, body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(response.Body)
		if err != nil || sha256.Sum256(got) != sha256.Sum256(append(first, content...)) {
			t.Errorf("%s: got %d bytes, %v, want the same %d", name, len(got), err, len(first)+len(content))
		}
	}
}

// TestUnitBreaksOff: a client detects a response that was cut short.
func TestUnitBreaksOff(t *testing.T) {
	w := newWorld(t)
	for name, h := range map[string]http.HandlerFunc{
		"in chunks": func(rw http.ResponseWriter, _ *http.Request) {
			io.WriteString(rw, "half")
			http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		},
		"of known length": func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Length", "8")
			io.WriteString(rw, "half")
			http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := w.replica(bustest.Scoring, h)
			first := header(r.ID)
			begin := time.Now()
			response, err := w.client("").post(t, wire.PathRequest, bytes.NewReader(first))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(response.Body)
			if err == nil || string(got) != "half" {
				t.Errorf("got %q, %v, want \"half\" and an error", got, err)
			}
			if took := time.Since(begin); took > time.Second {
				t.Errorf("told after %v", took)
			}
		})
	}
}

func TestClientHangsUp(t *testing.T) {
	w := newWorld(t)
	ended := make(chan struct{})
	w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "x")
		http.NewResponseController(rw).Flush()
		<-r.Context().Done()
		close(ended)
	})
	first := header(wire.UnitID{})
	response, err := w.client("").post(t, wire.PathRequest, bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(response.Body, make([]byte, 1))
	response.Body.Close()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("the unit goes on for a client that is gone")
	}
	testworld.Eventually(t, "nothing is under way", func() bool { return w.manager.gateway.slots.InUse() == 0 })
}

// TestBackPressure: a client that does not read stops the unit from writing; the gateway buffers
// a bounded part of the response.
func TestBackPressure(t *testing.T) {
	w := newWorld(t)
	const whole = 64 << 20
	var written atomic.Int64
	w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
		piece := make([]byte, 64<<10)
		for written.Load() < whole {
			if _, err := rw.Write(piece); err != nil {
				return
			}
			written.Add(int64(len(piece)))
		}
	})
	first := header(wire.UnitID{})
	response, err := w.client("").post(t, wire.PathRequest, bytes.NewReader(first))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var last int64
	testworld.Eventually(t, "the unit stops", func() bool {
		time.Sleep(100 * time.Millisecond)
		now := written.Load()
		stopped := now == last
		last = now
		return stopped
	})
	if last >= whole/2 {
		t.Errorf("the unit wrote %d bytes of %d that nobody read", last, whole)
	}
	if n, err := io.Copy(io.Discard, response.Body); n < whole || err != nil {
		t.Errorf("read on: got %d bytes, %v", n, err)
	}
}

// TestKilledUnit: after a unit is killed, unbound requests go to another unit at once. Requests
// bound to the killed unit are refused.
func TestKilledUnit(t *testing.T) {
	w := newWorld(t)
	a, b := w.named(bustest.Scoring), w.named(bustest.Scoring)
	c := w.client(bustest.DNSName(bustest.Scoring))
	for range 10 {
		c.request(t, wire.Header{}, "warm both connections")
	}
	a.kill()
	for i := range 50 {
		if status, got, _ := c.request(t, wire.Header{}, "x"); status != http.StatusOK || got != b.ID.String() {
			t.Fatalf("request %d: got %d %q, want %v", i, status, got, b.ID)
		}
		if i%10 == 0 {
			response, err := c.post(t, wire.PathSession, bytes.NewReader(openBody("task", bustest.Scoring)))
			if err != nil {
				t.Fatal(err)
			}
			if _, got, _ := read(t, response); got != b.ID.String() {
				t.Errorf("open: got %q, want %v", got, b.ID)
			}
		}
	}
	if status, _, p := c.request(t, wire.Header{Target: a.ID}, "x"); status != http.StatusServiceUnavailable || p.Reason != wire.Unavailable {
		t.Errorf("bound: got %d %q, want 503 %q", status, p.Reason, wire.Unavailable)
	}
	testworld.Eventually(t, "the silent unit is forgotten", func() bool { n, _ := w.manager.registry.counts(); return n == 1 })
	if status, _, p := c.request(t, wire.Header{Target: a.ID}, "x"); status != http.StatusMisdirectedRequest || p.Reason != wire.Misdirected {
		t.Errorf("forgotten: got %d %q, want 421 %q", status, p.Reason, wire.Misdirected)
	}
}

// TestNoSecondUnitForABoundRequest: a request bound to a unit that fails is sent to no other
// unit.
func TestNoSecondUnitForABoundRequest(t *testing.T) {
	w := newWorld(t)
	abort := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	a, b := w.replica(bustest.Scoring, abort), w.named(bustest.Scoring)
	c := w.client(bustest.DNSName(bustest.Scoring))
	if status, _, _ := c.request(t, wire.Header{Target: a.ID}, "x"); status != http.StatusServiceUnavailable || b.calls.Load() != 0 {
		t.Errorf("got status %d, and %d requests at another unit", status, b.calls.Load())
	}
	for range 5 { // unbound: the other unit responds
		if _, got, _ := c.request(t, wire.Header{}, "x"); got != b.ID.String() {
			t.Errorf("got %q, want %v", got, b.ID)
		}
	}
}

// TestNoSecondUnitAfterALongBody: a body longer than the replay buffer cannot be sent again.
func TestNoSecondUnitAfterALongBody(t *testing.T) {
	w := newWorld(t)
	a := w.replica(bustest.Scoring, func(_ http.ResponseWriter, r *http.Request) {
		io.ReadFull(r.Body, make([]byte, 2*maxReplay))
		panic(http.ErrAbortHandler)
	})
	b := w.replica(bustest.Scoring, func(http.ResponseWriter, *http.Request) {})
	w.claim(b, func(x *bus.Heartbeat) { x.InFlight = 1000 }) // so that the request goes to a first
	c := w.client(bustest.DNSName(bustest.Scoring))
	if status, _, _ := c.request(t, wire.Header{}, strings.Repeat("x", 4*maxReplay)); status != http.StatusServiceUnavailable {
		t.Errorf("got %d, want 503", status)
	}
	if a.calls.Load() != 1 || b.calls.Load() != 0 {
		t.Errorf("got %d and %d calls, want 1 and 0", a.calls.Load(), b.calls.Load())
	}
}

func TestLastUnitIsNeverEjected(t *testing.T) {
	w := newWorld(t)
	var broken atomic.Bool
	broken.Store(true)
	w.replica(bustest.Scoring, func(rw http.ResponseWriter, _ *http.Request) {
		if broken.Load() {
			panic(http.ErrAbortHandler)
		}
	})
	c := w.client(bustest.DNSName(bustest.Scoring))
	for range 8 {
		c.request(t, wire.Header{}, "x")
	}
	broken.Store(false)
	if status, _, _ := c.request(t, wire.Header{}, "x"); status != http.StatusOK {
		t.Errorf("got %d at once after the unit works again, want 200", status)
	}
}

func TestUnitThatIsNotReady(t *testing.T) {
	w := newWorld(t)
	a, b := w.named(bustest.Scoring), w.named(bustest.Scoring)
	w.claim(a, func(x *bus.Heartbeat) { x.Ready = false })
	c := w.client(bustest.DNSName(bustest.Scoring))
	for range 10 {
		if _, got, _ := c.request(t, wire.Header{}, "x"); got != b.ID.String() {
			t.Errorf("unbound: got %q, want %v", got, b.ID)
		}
	}
	if _, got, _ := c.request(t, wire.Header{Target: a.ID}, "x"); got != a.ID.String() {
		t.Errorf("bound: got %q, want %v", got, a.ID)
	}
}

// TestUnitThatLeaves: the gateway closes its idle connections to a unit that reports that it is
// no longer ready, so the unit need not wait for them.
func TestUnitThatLeaves(t *testing.T) {
	w := newWorld(t)
	r := w.named(bustest.Scoring)
	w.client(bustest.DNSName(bustest.Scoring)).request(t, wire.Header{}, "x")
	if r.conns.Load() == 0 {
		t.Fatal("no connection is kept alive")
	}
	w.claim(r, func(b *bus.Heartbeat) { b.Ready = false })
	testworld.Eventually(t, "no connection is left", func() bool { return r.conns.Load() == 0 })
}

// TestUnitsThatLie: a genuine unit of one cluster that lies about its address receives no
// requests of another cluster.
func TestUnitsThatLie(t *testing.T) {
	w := newWorld(t)
	honest, liar := w.named(bustest.Scoring), w.named(bustest.Keys)
	c := w.client(bustest.DNSName(bustest.Scoring))
	for name, lie := range map[string]func(*bus.Heartbeat){
		"another unit's address": func(b *bus.Heartbeat) { b.Address = honest.claims.Load().Address },
		"an address of nobody":   func(b *bus.Heartbeat) { b.Address = "127.0.0.1:1" },
	} {
		t.Run(name, func(t *testing.T) {
			truth := *liar.claims.Load()
			defer w.claim(liar, func(b *bus.Heartbeat) { *b = truth })
			w.claim(liar, lie)
			liar.calls.Store(0)
			for range 10 {
				if _, got, _ := c.request(t, wire.Header{}, "x"); got != honest.ID.String() {
					t.Errorf("got %q, want %v", got, honest.ID)
				}
			}
			if status, _, _ := c.request(t, wire.Header{Target: liar.ID}, "x"); status != http.StatusServiceUnavailable || liar.calls.Load() != 0 {
				t.Errorf("bound to the liar: got %d and %d calls, want 503 and none", status, liar.calls.Load())
			}
		})
	}
}

// TestWarmUp: after a restart, the gateway waits for units that have not reconnected yet.
func TestWarmUp(t *testing.T) {
	w := newWorld(t)
	unit := w.named(bustest.Scoring)
	w.restart()
	c := w.client(bustest.DNSName(bustest.Scoring))
	for _, h := range []wire.Header{{Target: unit.ID}, {}} {
		if status, got, _ := c.request(t, h, "x"); status != http.StatusOK || got != unit.ID.String() {
			t.Errorf("target %v: got %d %q, want %v", h.Target, status, got, unit.ID)
		}
	}
}

// TestStaleConnections: a unit closes idle connections, and no request is lost by it, bound or
// not.
func TestStaleConnections(t *testing.T) {
	w := newWorld(t)
	w.idle = 20 * time.Millisecond
	unit := w.named(bustest.Scoring)
	c := w.client(bustest.DNSName(bustest.Scoring))
	for i := range 40 {
		if status, _, _ := c.request(t, wire.Header{Target: unit.ID}, "x"); status != http.StatusOK {
			t.Fatalf("request %d: got %d", i, status)
		}
		time.Sleep(time.Duration(18+i%5) * time.Millisecond)
	}
}

// TestUploadEndsWithItsUnit: the unit is lost while a client sends an endless body. The client
// gets the error with its next piece.
func TestUploadEndsWithItsUnit(t *testing.T) {
	w := newWorld(t)
	unit := w.replica(bustest.Scoring, func(rw http.ResponseWriter, r *http.Request) {
		io.ReadFull(r.Body, make([]byte, wire.HeaderSize+1))
		conn, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		conn.Close()
	})
	out, in := io.Pipe()
	defer in.Close()
	first := header(unit.ID)
	go func() {
		for in.Write(append(first, 'x')); ; time.Sleep(50 * time.Millisecond) {
			if _, err := in.Write([]byte("x")); err != nil {
				return
			}
		}
	}()
	begin := time.Now()
	response, err := w.client("").post(t, wire.PathRequest, out)
	if err == nil {
		response.Body.Close()
		if response.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("got %d, want 503", response.StatusCode)
		}
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("told after %v", took)
	}
	testworld.Eventually(t, "nothing is under way", func() bool { return w.manager.gateway.slots.InUse() == 0 })
}

// TestGatewayOverTLS: the gateway serves HTTP/2 over TLS 1.3 with the operator's certificate, as
// browsers use it.
func TestGatewayOverTLS(t *testing.T) {
	w := newWorld(t)
	certificate := w.authority.Unit(bustest.Keys).Serving
	w.stop()
	w.config.Certificate = func() (*tls.Certificate, error) { return &certificate, nil }
	w.start()
	w.cool()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	c := client{http: &http.Client{Transport: transport}, url: "https://" + w.gateway}
	response, err := c.post(t, wire.PathRequest, bytes.NewReader(header(wire.UnitID{1})))
	if err != nil {
		t.Fatal(err)
	}
	status, _, p := read(t, response)
	if status != http.StatusMisdirectedRequest || p.Reason != wire.Misdirected || response.ProtoMajor != 2 {
		t.Errorf("got %d %q over %s, want 421 %q over HTTP/2", status, p.Reason, response.Proto, wire.Misdirected)
	}
	old := &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}
	if conn, err := tls.Dial("tcp", w.gateway, old); err == nil {
		conn.Close()
		t.Error("over TLS 1.2: got a connection")
	}
}

func TestPlainTextIsForLoopback(t *testing.T) {
	w := newWorld(t)
	w.stop()
	m, err := New(w.config)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	testworld.Refused(t, m.Serve(t.Context(), l), wire.NotAllowed)
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the listener: got %v, want it closed", err)
	}
}
