package trustrelay

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// authority is a server that responds as its handler does, and records the queries.
type authority struct {
	*httptest.Server

	mu      sync.Mutex
	handler http.HandlerFunc
	queries []string
}

func newAuthority(t *testing.T, h http.HandlerFunc) *authority {
	a := &authority{handler: h}
	a.Server = httptest.NewUnstartedServer(a)
	a.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	a.StartTLS()
	t.Cleanup(func() { a.CloseClientConnections(); a.Close() })
	return a
}

func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	a.queries = append(a.queries, r.URL.RequestURI())
	h := a.handler
	a.mu.Unlock()
	h(w, r)
}

func (a *authority) respond(h http.HandlerFunc) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.handler = h
}

func (a *authority) asked() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.queries)
}

// reply returns a handler with one response.
func reply(status int, kind, control, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		if control != "" {
			w.Header().Set("Cache-Control", control)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}

// statement is a response that gateways may keep.
func statement(control string) http.HandlerFunc {
	return reply(http.StatusOK, "application/json", control, `{"statement":"x"}`)
}

// fixture is a relay with a made-up clock.
type fixture struct {
	*Relay
	t   *testing.T
	now atomic.Int64 // seconds

	head atomic.Pointer[wire.Digest]
}

func newFixture(t *testing.T, to ...*authority) *fixture {
	f := &fixture{t: t}
	f.now.Store(1e9)
	f.head.Store(&wire.Digest{1})
	var clients []*api.Authority
	for _, a := range to {
		pool := x509.NewCertPool()
		pool.AddCert(a.Certificate())
		client := testworld.Must(api.NewAuthority(a.URL, &tls.Config{RootCAs: pool}))
		t.Cleanup(client.Close)
		clients = append(clients, client)
	}
	f.Relay = NewRelay(clients, func() wire.Digest { return *f.head.Load() }, func() time.Time { return time.Unix(f.now.Load(), 0) })
	t.Cleanup(f.Close)
	return f
}

// get sends a query from an address.
func (f *fixture) get(ctx context.Context, address, query string) (*httptest.ResponseRecorder, error) {
	r := httptest.NewRequestWithContext(ctx, http.MethodGet, wire.PathTrust, nil)
	r.URL.RawQuery = query
	r.RemoteAddr = address + ":1"
	r.Header = http.Header{"Cookie": {"secret"}, "Authorization": {"secret"}, "Cohort-Ticket": {"secret"}}
	w := httptest.NewRecorder()
	err := f.ServeTrust(w, r)
	return w, err
}

// want sends a query and fails the test unless it is served with a status.
func (f *fixture) want(address, query string, status int) *httptest.ResponseRecorder {
	f.t.Helper()
	w, err := f.get(f.t.Context(), address, query)
	if err != nil || w.Code != status {
		f.t.Fatalf("%s from %s: got %d, %v, want %d", query, address, w.Code, err, status)
	}
	return w
}

var nonce = "nonce=" + strings.Repeat("0a", 32)

// TestPassedOn: status, content type, Cache-Control, Retry-After and body of a response are
// those of the authority, which receives the query and no other field of the client.
func TestPassedOn(t *testing.T) {
	problem := `{"type":"urn:cohort:problem:not-found"}`
	for _, row := range []struct {
		status              int
		kind, control, body string
	}{
		{http.StatusOK, "application/json", "no-store", `{"authority":"AA=="}`},
		{http.StatusOK, "application/json", "public, max-age=60", `{"statement":"AA=="}`},
		{http.StatusBadRequest, api.TypeProblem, "no-store", problem},
		{http.StatusForbidden, api.TypeProblem, "no-store", problem},
		{http.StatusNotFound, api.TypeProblem, "no-store", problem},
		{http.StatusConflict, api.TypeProblem, "no-store", problem},
		{http.StatusTooManyRequests, api.TypeProblem, "no-store", problem},
		{http.StatusServiceUnavailable, api.TypeProblem, "no-store", problem},
	} {
		for _, query := range []string{"task=scoring", nonce + "&task=scoring", "credential=0aff&" + nonce + "&task=scoring"} {
			a := newAuthority(t, func(w http.ResponseWriter, r *http.Request) {
				for _, field := range []string{"Cookie", "Authorization", "Cohort-Ticket", "User-Agent"} {
					if r.Header.Get(field) != "" {
						t.Errorf("the authority received %s", field)
					}
				}
				w.Header().Set("Retry-After", "7")
				w.Header().Set("Set-Cookie", "x=y")
				reply(row.status, row.kind, row.control, row.body)(w, r)
			})
			h := newFixture(t, a).want("192.0.2.1", query, row.status)
			if got := h.Body.String(); got != row.body {
				t.Errorf("%d: got body %q", row.status, got)
			}
			for field, want := range map[string]string{"Content-Type": row.kind, "Cache-Control": row.control, "Retry-After": "7", "Set-Cookie": "", "X-Content-Type-Options": "nosniff"} {
				if got := h.Header().Get(field); got != want {
					t.Errorf("%d: %s: got %q, want %q", row.status, field, got, want)
				}
			}
			if got := a.queries; len(got) != 1 || got[0] != api.PathTrust+"?"+query {
				t.Errorf("the authority received %v, want %q", got, query)
			}
		}
	}
}

// TestStep: a response that was kept before a step of the policy serves no request after it.
func TestStep(t *testing.T) {
	a := newAuthority(t, statement("public, max-age=60"))
	f := newFixture(t, a)
	for range 2 {
		f.want("192.0.2.1", "task=scoring", http.StatusOK)
	}
	f.head.Store(&wire.Digest{2})
	for range 2 {
		f.want("192.0.2.1", "task=scoring", http.StatusOK)
	}
	if got := a.asked(); got != 2 {
		t.Errorf("the authority received %d requests, want one for each head", got)
	}
}

// TestMalformed: a query of any other form is refused, and the authority receives nothing.
func TestMalformed(t *testing.T) {
	a := newAuthority(t, statement("no-store"))
	f := newFixture(t, a)
	id := strings.Repeat("0a", 32)
	for _, query := range []string{
		"", nonce, "task=a&group=b", "task=a&id=" + id, "group=a&id=" + id, "task=a&task=b", "task=", "group=", "id=", "id=" + id[1:], "id=" + strings.ToUpper(id), "id=" + strings.Repeat("00", 32),
		"task=%", "task=a;b",
		"task=a&nonce=", "task=a&nonce=" + id[2:], "task=a&nonce=" + id + "00", "task=a&nonce=" + strings.Repeat("z", 64), "task=a&" + nonce + "&" + nonce,
		"task=a&credential=00", "task=a&" + nonce + "&credential=0", "task=a&" + nonce + "&credential=" + strings.Repeat("00", api.MaxCredential+1), "task=a&" + nonce + "&credential=", "task=a&" + nonce + "&credential=zz",
		"task=a&other=b", "task=a&from=0", "task=" + strings.Repeat("a", maxQuery), "TASK=a",
	} {
		if _, err := f.get(t.Context(), "192.0.2.1", query); !slices.Contains([]wire.Reason{wire.BadRequest, wire.Malformed}, wire.ReasonOf(err)) {
			t.Errorf("%.80q: got %v, want it refused", query, err)
		}
	}
	for _, method := range []string{http.MethodPost, http.MethodHead, http.MethodPut, "get"} {
		r := httptest.NewRequest(method, wire.PathTrust+"?task=a", strings.NewReader("x"))
		if err := f.ServeTrust(httptest.NewRecorder(), r); wire.ReasonOf(err) != wire.BadRequest {
			t.Errorf("%s: got %v, want %q", method, err, wire.BadRequest)
		}
	}
	if n := a.asked(); n != 0 {
		t.Errorf("the authority received %d requests: %v", n, a.queries)
	}
	for _, query := range []string{
		"task=a", "task=%0d%0a", "group=trial", "id=" + id, "id=sha256:" + id, "task=a&" + nonce,
		"task=a&" + nonce + "&credential=00", "task=a&" + nonce + "&credential=" + strings.Repeat("00", api.MaxCredential),
	} {
		f.want("192.0.2.1", query, http.StatusOK)
	}
}

// TestKept: a response is kept for as long as its Cache-Control allows, at most 5 minutes, and
// its age is told to caches. A response with a nonce is never kept, a refusal for a second.
func TestKept(t *testing.T) {
	for _, row := range []struct {
		control string
		seconds int64 // for which it is kept
	}{
		{"public, max-age=60", 60}, {"max-age=1", 1}, {"MAX-AGE=7", 7}, {"max-age=300", 300}, {"max-age=2147483647", 300}, {"max-age=0", 0},
		{"", 0}, {"public", 0}, {"max-age", 0}, {"max-age=", 0}, {"max-age=-1", 0}, {"max-age=1.5", 0}, {`max-age="60"`, 0}, {"max-age=99999999999999999999", 0}, {"max-age=4294967296", 0},
		{"no-store", 0}, {"no-store, max-age=60", 0}, {"max-age=60, private", 0}, {"no-cache, max-age=60", 0}, {"max-age=60, max-age=1", 0}, {"s-maxage=1, max-age=60", 0},
	} {
		t.Run(row.control, func(t *testing.T) {
			a := newAuthority(t, statement(row.control))
			f := newFixture(t, a)
			f.want("192.0.2.1", "task=a", http.StatusOK)
			if row.seconds > 0 {
				f.now.Add(row.seconds - 1)
				h := f.want("192.0.2.2", "task=a", http.StatusOK)
				if a.asked() != 1 || h.Body.String() != `{"statement":"x"}` || h.Header().Get("Age") != fmt.Sprint(row.seconds-1) || h.Header().Get("Cache-Control") != row.control {
					t.Fatalf("got %d requests, %v", a.asked(), h.Header())
				}
				f.want("192.0.2.2", "task=b", http.StatusOK)
				if a.asked() != 2 {
					t.Fatal("another task is served from the first one's response")
				}
				a.respond(statement("no-store"))
				f.now.Add(1)
				f.want("192.0.2.2", "task=a", http.StatusOK)
				if a.asked() != 3 {
					t.Error("a response is served after its time")
				}
			} else {
				f.want("192.0.2.2", "task=a", http.StatusOK)
				if a.asked() != 2 {
					t.Error("a response that may not be kept is served twice")
				}
			}
			before := a.asked()
			a.respond(statement("max-age=60"))
			f.want("192.0.2.3", nonce+"&task=c", http.StatusOK)
			f.want("192.0.2.3", nonce+"&task=c", http.StatusOK)
			if a.asked() != before+2 {
				t.Error("a response with a nonce is served twice")
			}
		})
	}
	a := newAuthority(t, reply(http.StatusNotFound, api.TypeProblem, "max-age=60", "{}"))
	f := newFixture(t, a)
	for _, step := range []struct{ later, want int }{{0, 1}, {0, 1}, {1, 2}, {0, 2}} {
		f.now.Add(int64(step.later))
		f.want("192.0.2.1", "task=a", http.StatusNotFound)
		if a.asked() != step.want {
			t.Errorf("a refusal: got %d requests, want %d", a.asked(), step.want)
		}
	}
}

// TestOneFetch: one request to the authority serves all clients that wait, and ends neither with
// the client that began it nor with any other.
func TestOneFetch(t *testing.T) {
	begin := make(chan struct{})
	a := newAuthority(t, func(w http.ResponseWriter, r *http.Request) { <-begin; statement("max-age=60")(w, r) })
	f := newFixture(t, a)
	ctx, leave := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := f.get(ctx, "192.0.2.1", "task=a"); first <- err }()
	testworld.Eventually(t, "the authority is asked", func() bool { return a.asked() == 1 })
	var waiting sync.WaitGroup
	for i := range 50 {
		waiting.Go(func() {
			if w, err := f.get(t.Context(), fmt.Sprint("198.51.100.", i), "task=a"); err != nil || w.Code != http.StatusOK {
				t.Errorf("got %d, %v", w.Code, err)
			}
		})
	}
	testworld.Eventually(t, "all wait", func() bool { return f.requests.InUse() == 51 })
	leave()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the client that left: got %v", err)
	}
	close(begin)
	waiting.Wait()
	if a.asked() != 1 {
		t.Errorf("got %d requests, want 1", a.asked())
	}
	f.wantFree()
}

// wantFree fails the test unless all memory is given back once the kept responses have ended.
func (f *fixture) wantFree() {
	f.t.Helper()
	f.now.Add(3600)
	f.sweep()
	testworld.Eventually(f.t, "all is given back", func() bool { return f.bytes.InUse() == 0 && f.kept.InUse() == 0 && f.requests.InUse() == 0 })
}

// TestNextAuthority: another authority is asked if one does not respond, is behind, full or
// faulty. The last response that may be passed on is passed on; if there is none, the request is
// refused, without the authorities' addresses.
func TestNextAuthority(t *testing.T) {
	problem := func(status int) http.HandlerFunc { return reply(status, api.TypeProblem, "", "{}") }
	for _, row := range []struct {
		name  string
		first http.HandlerFunc
		alone int // status with this authority alone; 0: unavailable
		next  bool
	}{
		{"cut off", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, 0, true},
		{"a fault", problem(http.StatusInternalServerError), 0, true},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://203.0.113.1/", http.StatusFound)
		}, 0, true},
		{"a page", reply(http.StatusOK, "text/html", "max-age=60", "<script>"), 0, true},
		{"a problem that is no problem", reply(http.StatusNotFound, "application/json", "", "{}"), 0, true},
		{"a teapot", problem(http.StatusTeapot), 0, true},
		{"too large", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for piece, n := make([]byte, 1<<20), 0; n <= wire.MaxResponse; n += len(piece) {
				_, _ = w.Write(piece)
			}
		}, 0, true},
		{"behind", problem(http.StatusConflict), http.StatusConflict, true},
		{"full", problem(http.StatusTooManyRequests), http.StatusTooManyRequests, true},
		{"not ready", problem(http.StatusServiceUnavailable), http.StatusServiceUnavailable, true},
		{"not found", problem(http.StatusNotFound), http.StatusNotFound, false},
		{"refused", problem(http.StatusBadRequest), http.StatusBadRequest, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, b := newAuthority(t, row.first), newAuthority(t, statement("max-age=60"))
			for _, query := range []string{"task=a", nonce + "&task=a"} {
				f := newFixture(t, a)
				w, err := f.get(t.Context(), "192.0.2.1", query)
				switch {
				case row.alone != 0 && (err != nil || w.Code != row.alone):
					t.Errorf("alone: got %d, %v, want %d", w.Code, err, row.alone)
				case row.alone == 0 && (wire.ReasonOf(err) != wire.Unavailable || strings.Contains(fmt.Sprint(api.GatewayProblem(err)), "127.0.0.1")):
					t.Errorf("alone: got %+v, want %q without an address", api.GatewayProblem(err), wire.Unavailable)
				}
				f.wantFree()
				f, before := newFixture(t, a, b), a.asked()
				want := row.alone
				if row.next {
					want = http.StatusOK
				}
				f.want("192.0.2.1", query, want)
				f.want("192.0.2.1", nonce+"&task=b", want)
				if asked := a.asked() - before; row.next && asked != 1 {
					t.Errorf("the first authority: asked %d times, want 1, since the other responds", asked)
				}
				f.wantFree()
			}
		})
	}
	f := newFixture(t)
	if _, err := f.get(t.Context(), "192.0.2.1", "task=a"); wire.ReasonOf(err) != wire.Unavailable || !strings.Contains(err.Error(), "--authority") {
		t.Errorf("without an authority: got %v", err)
	}
}

// TestOneAddress: an address has at most half of the requests that are passed on in a second,
// with and without a nonce, and the rest is left for others. The requests in a second are
// bounded for all addresses together.
func TestOneAddress(t *testing.T) {
	for name, query := range map[string]func(int) string{
		quotaFresh:   func(i int) string { return fmt.Sprintf("%s&task=a%d", nonce, i) },
		quotaFetches: func(i int) string { return fmt.Sprintf("task=a%d", i) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newAuthority(t, reply(http.StatusNotFound, api.TypeProblem, "", "{}"))
			f := newFixture(t, a)
			f.fresh, f.fetches = limit.NewShares(quotaFresh, 6), limit.NewShares(quotaFetches, 6)
			served := func(address string) (n int) {
				for i := range 6 {
					_, err := f.get(t.Context(), address, query(i))
					if err == nil {
						n++
					} else if quota, _ := limit.QuotaOf(err); quota != name {
						t.Fatalf("got %v, want a refusal by the quota", err)
					}
				}
				return n
			}
			// The places are given back a second later: count only what is not.
			begin := time.Now()
			one := served("192.0.2.1")
			f.now.Add(1) // no refusal is kept
			two := served("192.0.2.2")
			if time.Since(begin) < period && (one != 3 || two < 1 || a.asked() > 6) {
				t.Errorf("got %d and %d served, %d requests, want 3, some and at most 6", one, two, a.asked())
			}
			testworld.Eventually(t, "the places are given back", func() bool { return f.fresh.InUse()+f.fetches.InUse() == 0 })
			if got := served("192.0.2.1"); got == 0 {
				t.Error("none is served in the next second")
			}
		})
	}
}

// TestEntriesStay: an address that requests many tasks has at most half of what is kept, and
// evicts no response of another address. What is not kept is served all the same.
func TestEntriesStay(t *testing.T) {
	a := newAuthority(t, statement("max-age=60"))
	f := newFixture(t, a)
	f.kept = limit.NewShares("", 8*(entryBytes+100))
	f.want("192.0.2.1", "task=victim", http.StatusOK)
	for i := range 12 {
		f.want("198.51.100.1", fmt.Sprint("task=a", i), http.StatusOK)
	}
	f.mu.Lock()
	n := len(f.entries)
	f.mu.Unlock()
	if n > 5 {
		t.Errorf("got %d entries, want at most that of the victim and half of 8", n)
	}
	before := a.asked()
	f.want("203.0.113.1", "task=victim", http.StatusOK)
	if a.asked() != before {
		t.Error("the response was evicted")
	}
	f.want("192.0.2.2", "task=another", http.StatusOK)
	f.want("192.0.2.3", "task=another", http.StatusOK)
	if a.asked() != before+1 {
		t.Error("another address has no room")
	}
	f.wantFree()
}

// TestOwnShare: a client whose address has no memory left for a response is refused. A client of
// another address that waits for the same fetch is not.
func TestOwnShare(t *testing.T) {
	begin := make(chan struct{})
	a := newAuthority(t, func(w http.ResponseWriter, r *http.Request) { <-begin; statement("max-age=60")(w, r) })
	f := newFixture(t, a)
	flood := limit.AddressOf("198.51.100.1:1")
	if err := f.bytes.Acquire(flood, maxBytes/2); err != nil {
		t.Fatal(err)
	}
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := f.get(t.Context(), "198.51.100.1", "task=a"); first <- err }()
	testworld.Eventually(t, "the authority is asked", func() bool { return a.asked() == 1 })
	go func() { _, err := f.get(t.Context(), "192.0.2.1", "task=a"); second <- err }()
	testworld.Eventually(t, "both wait", func() bool { return f.requests.InUse() == 2 })
	close(begin)
	if err := <-first; wire.ReasonOf(err) != wire.TooMany {
		t.Errorf("the address that exceeds its share: got %v, want %q", err, wire.TooMany)
	}
	if err := <-second; err != nil {
		t.Errorf("another address: got %v", err)
	}
	f.bytes.Release(flood, maxBytes/2)
	f.wantFree()
}

// TestClosed: a relay that ends cancels its fetches.
func TestClosed(t *testing.T) {
	gone := make(chan struct{})
	a := newAuthority(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done(); close(gone) })
	f := newFixture(t, a)
	result := make(chan error, 1)
	go func() { _, err := f.get(t.Context(), "192.0.2.1", "task=a"); result <- err }()
	testworld.Eventually(t, "the authority is asked", func() bool { return a.asked() == 1 })
	f.Close()
	<-gone
	if err := <-result; wire.ReasonOf(err) != wire.Unavailable {
		t.Errorf("got %v, want %q", err, wire.Unavailable)
	}
}
