package manager

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// heard collects what the manager pushes to a unit.
type heard struct {
	mu    sync.Mutex
	items []bus.Item
}

func listen(t *testing.T, c *bus.Conn) *heard {
	t.Helper()
	h := &heard{}
	c.Subscribe(func(i bus.Item) {
		i.Bytes = bytes.Clone(i.Bytes)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.items = append(h.items, i)
	})
	// A response shows that the manager has the connection.
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if _, err := c.AllocateRange(ctx); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *heard) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.items)
}

// item returns a session sealed for an identity, as far as a manager parses it.
func item(n int, of ...wire.Digest) bus.Item {
	return sealed(bus.Item{Kind: bus.Sealed, Session: wire.SessionID{byte(n >> 8), byte(n)}, Expiry: uint64(time.Now().Add(time.Hour).Unix())}, fmt.Sprintf("sealed %d", n), of...)
}

// sealed returns an item with a text instead of the ciphertext.
func sealed(i bus.Item, text string, of ...wire.Digest) bus.Item {
	identity := append(of, wire.Digest{})[0]
	h, kind := envelope.Header{For: identity, Session: i.Session, Expiry: i.Expiry}, sealedKind(i)
	i.Bytes = envelope.Sealed{AD: h.Encode(kind), Nonce: make([]byte, 12), Ciphertext: []byte(text)}.Encode(kind)
	return i
}

func sealedKind(i bus.Item) envelope.Kind {
	if i.Kind == bus.Tombstone {
		return envelope.Tombstone
	}
	return envelope.Session
}

// recipient returns the identity or role that an item is sealed for.
func recipient(i bus.Item) wire.Digest {
	s, _ := envelope.ParseSealed(sealedKind(i), i.Bytes)
	return s.For
}

// reads reports whether an item contains a text.
func reads(i bus.Item, text string) bool { return bytes.HasSuffix(i.Bytes, []byte(text)) }

func TestRelayReachesTheWholeClusterAndNobodyElse(t *testing.T) {
	w := newWorld(t)
	var units []*heard
	first := w.authority.Unit(bustest.Scoring)
	sealer := w.connect(first)
	units = append(units, listen(t, sealer))
	for range 2 {
		units = append(units, listen(t, w.connect(w.authority.Unit(bustest.Scoring))))
	}
	stranger := listen(t, w.connect(w.authority.Unit(bustest.Keys)))
	const n = 500
	for i := range n {
		if err := sealer.Publish(item(i, first.Identity)); err != nil {
			t.Fatal(err)
		}
	}
	for _, u := range units {
		testworld.Eventually(t, "all were pushed", func() bool { return u.count() == n })
		for i, got := range u.items {
			if !reads(got, fmt.Sprintf("sealed %d", i)) {
				t.Fatalf("item %d: got %q", i, got.Bytes)
			}
		}
	}
	if stranger.count() != 0 {
		t.Errorf("another cluster got %d items", stranger.count())
	}
}

func TestLateJoinerPulls(t *testing.T) {
	w := newWorld(t)
	first := w.authority.Unit(bustest.Scoring)
	sealer := w.connect(first)
	if err := sealer.Publish(item(7, first.Identity)); err != nil {
		t.Fatal(err)
	}
	testworld.Eventually(t, "the copy is kept", func() bool { return len(w.manager.copies.ClustersWith(item(7).Session)) == 1 })
	unit, other := w.authority.Unit(bustest.Scoring), w.authority.Unit(bustest.Keys)
	pull := func(u bustest.Unit, n int) (bus.Item, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		c := w.connect(u)
		defer c.Close() // another connection of the unit would end this one
		return c.FetchCopy(ctx, item(n).Session)
	}
	expect := func(when string) {
		t.Helper()
		if got, err := pull(unit, 7); err != nil || !reads(got, "sealed 7") {
			t.Errorf("%s: got %q, %v", when, got.Bytes, err)
		}
	}
	expect("at once")
	_, err := pull(unit, 8)
	testworld.Refused(t, err, wire.NotFound)
	_, err = pull(other, 7)
	testworld.Refused(t, err, wire.NotFound)

	w.restart()
	expect("after a restart")

	tomb := item(7)
	tomb.Kind = bus.Tombstone
	tomb = sealed(tomb, "tomb", first.Identity)
	again := w.connect(w.authority.Unit(bustest.Scoring))
	again.Publish(tomb)
	again.Publish(item(7, first.Identity)) // a late copy does not revive the session
	again.Publish(item(9, first.Identity))
	testworld.Eventually(t, "the last is kept", func() bool { return len(w.manager.copies.ClustersWith(item(9).Session)) == 1 })
	if got, err := pull(unit, 7); err != nil || got.Kind != bus.Tombstone {
		t.Errorf("closed: got kind %v, %v, want a tombstone", got.Kind, err)
	}

	w.stop()
	if err := os.Remove(filepath.Join(w.config.DataDir, "sessions")); err != nil {
		t.Fatal(err)
	}
	w.start()
	_, err = pull(unit, 7)
	testworld.Refused(t, err, wire.NotFound)
}

// TestProbesAndMetrics: clients and the operator read the probes, and the operator alone the metrics.
func TestProbesAndMetrics(t *testing.T) {
	w := newWorld(t)
	w.named(bustest.Scoring)
	c := w.client(bustest.DNSName(bustest.Scoring))
	c.request(t, wire.Header{}, "x")
	w.cool()
	c.request(t, wire.Header{Target: wire.UnitID{1}}, "x")
	public := func(path string) string {
		response := testworld.Must(http.Get("http://" + w.gateway + path))
		defer response.Body.Close()
		return response.Status + " " + string(testworld.Must(io.ReadAll(response.Body)))
	}
	operator := func(path string) string {
		page := httptest.NewRecorder()
		w.manager.OperatorHandler().ServeHTTP(page, httptest.NewRequest(http.MethodGet, path, nil))
		return page.Result().Status + " " + page.Body.String()
	}
	for _, row := range []struct {
		get        func(string) string
		path, want string
	}{
		{public, api.PathLive, `"live"`},
		{public, api.PathReady, `"ready"`},
		{public, api.PathMetrics, "404 Not Found"},
		{operator, api.PathLive, `"live"`},
		{operator, api.PathReady, `"ready"`},
		{operator, api.PathMetrics, `cohort_gateway_request_seconds_count{path="/.well-known/cohort/request",reason="misdirected"} 1`},
		{operator, wire.PathRequest, "404 Not Found"},
		{operator, "/", `<span class="state good">ready</span>`},
		{operator, "/status.json", `"task":"` + bustest.Scoring + `"`},
		{public, "/", "404 Not Found"},
		{public, "/status.json", "404 Not Found"},
	} {
		if got := row.get(row.path); !strings.Contains(got, row.want) {
			t.Errorf("%s: got %s, want %s", row.path, got, row.want)
		}
	}
}

func TestConfigTellsAllFaults(t *testing.T) {
	_, err := New(Config{})
	for _, want := range []string{"data directory", "authority roots", "bus address"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

func TestNothingRunsOn(t *testing.T) {
	before := runtime.NumGoroutine()
	w := newWorld(t)
	unit := w.named(bustest.Scoring)
	c := w.client(bustest.DNSName(bustest.Scoring))
	for range 10 {
		c.request(t, wire.Header{}, "x")
	}
	w.restart()
	c.request(t, wire.Header{}, "x")
	unit.kill()
	c.http.CloseIdleConnections()
	w.stop()
	testworld.Eventually(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}
