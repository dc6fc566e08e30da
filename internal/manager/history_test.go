package manager

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/manager/selfsigned"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// scribe is an authority with a history of unsigned steps, because the gateway does not verify
// them.
type scribe struct {
	*httptest.Server

	mu      sync.Mutex
	entries []api.HistoryEntry
	heads   []wire.Digest
	moved   chan struct{}
	polls   int // waiting now
	asked   int // requests so far
	wrong   func(*api.History)
}

func newScribe(t *testing.T, as tls.Certificate) *scribe {
	s := &scribe{moved: make(chan struct{})}
	s.step("genesis")
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{as}}
	s.StartTLS()
	t.Cleanup(func() {
		s.CloseClientConnections() // of managers that stop later
		s.Close()
	})
	return s
}

// step appends a step.
func (s *scribe) step(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var before wire.Digest
	if len(s.heads) > 0 {
		before = s.heads[len(s.heads)-1]
	}
	s.entries = append(s.entries, api.HistoryEntry{Policy: []byte(text), Signatures: []string{"by owners"}})
	s.heads = append(s.heads, wire.NextHead(before, []byte(text)))
	close(s.moved)
	s.moved = make(chan struct{})
}

func (s *scribe) head() wire.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.heads[len(s.heads)-1]
}

func (s *scribe) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == api.PathTrust {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "public, max-age=60")
		fmt.Fprintf(w, "{%q:%q}", "query", r.URL.RawQuery)
		return
	}
	p, named, err := api.ParsePollQuery(r.URL.Query())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if named && p.Wait > 0 && p.Head == s.heads[len(s.heads)-1] {
		s.polls++
		moved := s.moved
		s.mu.Unlock()
		select {
		case <-moved:
		case <-time.After(p.Wait):
		case <-r.Context().Done():
		}
		s.mu.Lock()
		s.polls--
	}
	from := 0
	if named {
		for i, head := range s.heads {
			if head == p.Head {
				from = i + 1
			}
		}
		if from == 0 {
			err = wire.Refuse(wire.Behind, "head", p.Head, "ours")
		}
	} else if err == nil {
		from, err = strconv.Atoi(r.URL.Query().Get("from"))
	}
	if err != nil {
		api.ProblemOf(err).Write(w)
		return
	}
	h := api.History{From: from, Entries: s.entries[min(from, len(s.entries)):], Head: s.heads[len(s.heads)-1], ProvedHead: []byte(fmt.Sprint("proof ", len(s.heads)))}
	if s.wrong != nil {
		s.wrong(&h)
	}
	_ = json.NewEncoder(w).Encode(h)
}

// chronicled returns a manager that serves the history of a scribe, and a client of its gateway
// over HTTP/1.1 or HTTP/2.
func chronicled(t *testing.T, limits Limits, major int) (*world, *scribe, client) {
	t.Helper()
	w := newWorld(t)
	s := newScribe(t, w.authority.AuthorityLeaf())
	w.stop()
	if major == 2 {
		var err error
		if w.config.Certificate, err = selfsigned.LoadOrCreate(w.config.DataDir, w.config.BusAddress, time.Now()); err != nil { // the bus uses it too
			t.Fatal(err)
		}
	}
	w.config.Authorities, w.config.Limits = []string{s.URL}, limits
	w.start()
	t.Cleanup(func() { w.stop() }) // before its authority stops
	testworld.Eventually(t, "the history is read", func() bool { return w.manager.mirror.current.Load().lastHead() == s.head() })
	return w, s, w.from("127.0.0.1", major)
}

// askHistory requests the history from the gateway.
func (c client) askHistory(ctx context.Context, query string) (h api.History, status int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url+wire.PathHistory+"?"+query, nil)
	if err != nil {
		return h, 0, err
	}
	response, err := c.http.Do(r)
	if err != nil {
		return h, 0, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode == http.StatusOK {
		err = json.Unmarshal(body, &h)
	}
	return h, response.StatusCode, err
}

// TestGatewayHistory: one poll of the authority serves all clients of a gateway, with the proved
// head unchanged. A client with an older head gets the missing steps at once.
func TestGatewayHistory(t *testing.T) {
	w, s, c := chronicled(t, Limits{}, 1)
	genesis := s.head()
	all, status, err := c.askHistory(t.Context(), "from=0")
	if err != nil || status != http.StatusOK || len(all.Entries) != 1 || all.Head != genesis || string(all.ProvedHead) != "proof 1" {
		t.Fatalf("got %+v, %d, %v", all, status, err)
	}
	var waiting sync.WaitGroup
	const clients = 50
	got := make([]api.History, clients)
	for i := range clients {
		waiting.Go(func() {
			got[i], _, _ = c.askHistory(t.Context(), "from="+genesis.Hex()+"&wait=30s")
		})
	}
	testworld.Eventually(t, "all wait", func() bool { return w.manager.polls.InUse() == clients })
	s.mu.Lock()
	polls, asked := s.polls, s.asked
	s.mu.Unlock()
	if polls != 1 || asked > 3 {
		t.Errorf("%d polls wait at the authority, after %d requests, for %d clients", polls, asked, clients)
	}
	s.step("second")
	waiting.Wait()
	for i, h := range got {
		if h.From != 1 || len(h.Entries) != 1 || string(h.Entries[0].Policy) != "second" || h.Head != s.head() || string(h.ProvedHead) != "proof 2" {
			t.Fatalf("client %d got %+v", i, h)
		}
	}
	testworld.Eventually(t, "all places are given back", func() bool { return w.manager.polls.InUse() == 0 })
	old, _, err := c.askHistory(t.Context(), "from="+genesis.Hex()+"&wait=30s")
	if err != nil || len(old.Entries) != 1 {
		t.Errorf("an older head: got %+v, %v", old, err)
	}
	same, _, err := c.askHistory(t.Context(), "from="+s.head().Hex()+"&wait=10ms")
	if err != nil || same.From != 2 || len(same.Entries) != 0 {
		t.Errorf("no step: got %+v, %v", same, err)
	}
	for query, want := range map[string]int{
		"from=" + wire.Digest{1}.Hex() + "&wait=1s": http.StatusConflict, "from=x": http.StatusBadRequest,
		"from=" + genesis.Hex() + "&wait=31s": http.StatusBadRequest, "from=1&wait=1s": http.StatusBadRequest,
	} {
		if _, status, _ := c.askHistory(t.Context(), query); status != want {
			t.Errorf("%s: got %d, want %d", query, status, want)
		}
	}
}

// TestGatewayTrust: a gateway passes requests for trust on to its authority, over either protocol,
// and refuses them with a problem that names what is missing.
func TestGatewayTrust(t *testing.T) {
	get := func(c client, query string) (*http.Response, string, api.Problem) {
		t.Helper()
		response, err := c.http.Get(c.url + wire.PathTrust + "?" + query)
		if err != nil {
			t.Fatal(err)
		}
		_, body, problem := read(t, response)
		return response, body, problem
	}
	for _, major := range []int{1, 2} {
		w, _, c := chronicled(t, Limits{}, major)
		for query, control := range map[string]string{"task=scoring": "public, max-age=60", "nonce=" + strings.Repeat("0a", 32) + "&task=scoring": "public, max-age=60"} {
			response, body, _ := get(c, query)
			if response.StatusCode != http.StatusOK || body != fmt.Sprintf("{%q:%q}", "query", query) || response.Header.Get("Cache-Control") != control || response.ProtoMajor != major {
				t.Errorf("%s: got %v with %q", query, response, body)
			}
		}
		if response, _, problem := get(c, "task=scoring&other=1"); response.StatusCode != http.StatusBadRequest || problem.Reason != wire.BadRequest || response.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("another parameter: got %v, %+v", response, problem)
		}
		w.stop()
	}
	w := newWorld(t)
	if response, _, problem := get(w.from("127.0.0.1", 1), "task=scoring"); response.StatusCode != http.StatusServiceUnavailable || problem.Reason != wire.Unavailable || !strings.Contains(problem.Want, "--authority") {
		t.Errorf("without an authority: got %v, %+v", response, problem)
	}
}

// TestGatewayPolls: polls have their own places, over either protocol. An address has only its
// share, a client that disconnects frees its place, and polls end when the manager stops.
func TestGatewayPolls(t *testing.T) {
	for _, major := range []int{1, 2} {
		t.Run(fmt.Sprint("HTTP/", major), func(t *testing.T) {
			w, s, c := chronicled(t, Limits{Polls: 4, InFlight: 1}, major)
			query := "from=" + s.head().Hex() + "&wait=30s"
			gone, leave := context.WithCancel(t.Context())
			done := make(chan int, 2)
			for n := range 2 {
				go func() {
					_, status, _ := c.askHistory(gone, query)
					done <- status
				}()
				testworld.Eventually(t, "a poll waits", func() bool { return w.manager.polls.InUse() == n+1 })
			}
			_, status, err := c.askHistory(t.Context(), strings.Replace(query, "30s", "1s", 1))
			if err != nil || status != http.StatusTooManyRequests {
				t.Errorf("one poll more of the address: got %d, %v", status, err)
			}
			if page := w.metrics(); !strings.Contains(page, fmt.Sprintf("cohort_gateway_refused_total{quota=%q} 1\n", quotaPolls)) {
				t.Errorf("want one refusal by the quota of polls in the metrics: %s", page)
			}
			if err := w.manager.polls.Acquire(netip.MustParseAddr("192.0.2.1"), 1); err != nil {
				t.Errorf("another address: %v", err)
			}
			w.manager.polls.Release(netip.MustParseAddr("192.0.2.1"), 1)
			leave()
			<-done
			<-done
			testworld.Eventually(t, "the places are given back", func() bool { return w.manager.polls.InUse() == 0 })

			ended := make(chan int, 1)
			go func() {
				_, status, _ := c.askHistory(t.Context(), query)
				ended <- status
			}()
			testworld.Eventually(t, "a poll waits", func() bool { return w.manager.polls.InUse() == 1 })
			begin := time.Now()
			w.stop()
			if status := <-ended; status != http.StatusServiceUnavailable {
				t.Errorf("at the end: got %d", status)
			}
			if took := time.Since(begin); took > endWait/2 {
				t.Errorf("the manager ended after %v", took)
			}
		})
	}
}

// TestGatewayHistoryRefuses: the gateway fetches no history from a server without an authority's
// certificate, and no steps that do not lead to their head. Without an authority it serves none.
func TestGatewayHistoryRefuses(t *testing.T) {
	w := newWorld(t)
	c := w.from("127.0.0.1", 1)
	if _, status, _ := c.askHistory(t.Context(), "from=0"); status != http.StatusNotFound {
		t.Errorf("without an authority: got %d", status)
	}
	unit := w.authority.Unit(bustest.Scoring)
	for name, as := range map[string]tls.Certificate{"a unit": unit.Serving, "another authority": bustest.New(t).AuthorityLeaf()} {
		s := newScribe(t, as)
		a, err := api.NewAuthority(s.URL, authorityTLS(w.authority.Roots(), time.Now))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (&historyCopy{}).fetchAfter(t.Context(), a, 0); err == nil {
			t.Errorf("%s: got its history", name)
		}
		a.Close()
	}
	s := newScribe(t, w.authority.AuthorityLeaf())
	a, err := api.NewAuthority(s.URL, authorityTLS(w.authority.Roots(), time.Now))
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	first, err := (&historyCopy{}).fetchAfter(t.Context(), a, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.step("second")
	for name, wrong := range map[string]func(*api.History){
		"from elsewhere":  func(h *api.History) { h.From = 0 },
		"another head":    func(h *api.History) { h.Head[0] ^= 1; h.Entries = nil },
		"a long proof":    func(h *api.History) { h.ProvedHead = make([]byte, wire.MaxHead+1) },
		"too many steps":  func(h *api.History) { h.Entries = make([]api.HistoryEntry, wire.MaxHistory) },
		"no steps at all": func(h *api.History) { h.Entries = nil },
	} {
		s.mu.Lock()
		s.wrong = wrong
		s.mu.Unlock()
		if got, err := first.fetchAfter(t.Context(), a, 0); err == nil {
			t.Errorf("%s: got head %v", name, got.lastHead())
		}
	}
}

// TestGatewayHistoryBounded: the gateway keeps the newest steps, as many as fit.
func TestGatewayHistoryBounded(t *testing.T) {
	a := &historyCopy{}
	big := make([]byte, 1<<20)
	var head wire.Digest
	for n := range 80 {
		big[0] = byte(n)
		entry := api.HistoryEntry{Policy: append([]byte(nil), big...)}
		head = wire.NextHead(head, entry.Policy)
		next, err := a.appendPage(api.History{From: n, Entries: []api.HistoryEntry{entry}, Head: head})
		if err != nil {
			t.Fatal(err)
		}
		a = &next
	}
	if len(a.heads) != 80 || len(a.entries) != 64 || a.first != 16 || a.lastHead() != head {
		t.Errorf("got %d heads, %d entries from %d on", len(a.heads), len(a.entries), a.first)
	}
	if _, err := a.pageFrom(15); wire.ReasonOf(err) != wire.NotFound {
		t.Errorf("a step that is not kept: got %v", err)
	}
	h, err := a.pageFrom(16)
	if err != nil || len(h.Entries) != 8 || h.Head != head {
		t.Errorf("got %d entries, %v, want a page of 8", len(h.Entries), err)
	}
}
