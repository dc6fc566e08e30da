package client_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestStepEndsResponse: a step removes a release. A response of that release in progress
// ends, and the client sends it nothing more, long before the client would fetch trust
// again.
func TestStepEndsResponse(t *testing.T) {
	w := newWorld(t, "1", "2")
	gone := w.replicas(1, "1")[0]
	leaf := w.shared("scoring", "scoring 1", time.Now())
	gone.certificate = func() *tls.Certificate { return leaf }
	gone.setHandler(func(rw http.ResponseWriter, r *http.Request) {
		io.WriteString(rw, "begun")
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	c := w.clientOf(client.Config{Refresh: time.Hour}, gone)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	response, err := c.RoundTrip(testworld.Must(http.NewRequestWithContext(ctx, "GET", "https://"+serverName+"/", nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	watched(t, w)
	began := time.Now()
	w.adopt("2")
	if body, err := io.ReadAll(response.Body); err == nil {
		t.Errorf("got %q to its end", body)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("the response ended %v after the step", took)
	}
	before := gone.executed.Load()
	_, err = do(c, soon(t, testworld.Must(http.NewRequest("GET", "https://"+serverName+"/", nil))))
	testworld.Refused(t, err, wire.CutOff)
	if n := gone.executed.Load() - before; n != 0 {
		t.Errorf("%d requests went to the removed release", n)
	}
}

// stuck resolves a name once. The second lookup, by the client's upkeep, hangs until its
// context ends.
type stuck struct {
	address string
	asked   atomic.Int32
}

func (s *stuck) LookupHost(ctx context.Context, _ string) ([]string, error) {
	if s.asked.Add(1) > 1 {
		<-ctx.Done()
	}
	return []string{s.address}, ctx.Err()
}

// TestStepAheadOfUpkeep: the client's upkeep, which verifies all connections after a step,
// hangs. No request uses a connection that the newest policy has not verified.
func TestStepAheadOfUpkeep(t *testing.T) {
	w := newWorld(t, "1", "2")
	gone := w.replicas(1, "1")[0]
	leaf := w.shared("scoring", "scoring 1", time.Now())
	gone.certificate = func() *tls.Certificate { return leaf }
	host, port, err := net.SplitHostPort(gone.address)
	if err != nil {
		t.Fatal(err)
	}
	names := &stuck{address: host}
	c := w.clientOf(client.Config{Refresh: 200 * time.Millisecond, Resolver: names, Addresses: []string{"unit.test:" + port}})
	get(t, c, "ok")
	testworld.Eventually(t, "the upkeep is held up", func() bool { return names.asked.Load() > 1 })
	w.adopt("2")
	testworld.Eventually(t, "the step is adopted", func() bool { return c.Trust().Policy().PolicyHead() == w.visibleHead() })
	before := gone.executed.Load()
	_, err = do(c, soon(t, testworld.Must(http.NewRequest("GET", "https://"+serverName+"/", nil))))
	testworld.Refused(t, err, wire.CutOff)
	if n := gone.executed.Load() - before; n != 0 {
		t.Errorf("%d requests went to the removed release", n)
	}
}

// watched waits until a poll is pending at the authority.
func watched(t *testing.T, w *world) {
	t.Helper()
	testworld.Eventually(t, "a poll waits", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.polls > 0
	})
}

// TestStepLeavesConnections: a step that does not concern a client's replicas leaves its
// connections open.
func TestStepLeavesConnections(t *testing.T) {
	w := newWorld(t, "1")
	c := w.clientOf(client.Config{Refresh: time.Hour}, w.replicas(1, "1")...)
	get(t, c, "ok")
	watched(t, w)
	w.adopt("1", "2")
	testworld.Eventually(t, "the step is adopted", func() bool { return c.Stats().PolicyHead == w.visibleHead() })
	for range 5 {
		get(t, c, "ok")
	}
	if got := c.Stats().Dials; got != 1 {
		t.Errorf("got %d connections, want 1", got)
	}
}

// TestOneWatcher: all clients of one trust share one poll, and after the last is closed no
// goroutine is left.
func TestOneWatcher(t *testing.T) {
	w := newWorld(t, "1")
	replicas := w.replicas(1, "1")
	trust := w.fetch(nil)
	before := runtime.NumGoroutine()
	var all []*client.Client
	for range 4 {
		all = append(all, testworld.Must(client.New(client.Config{Trust: trust, Addresses: []string{replicas[0].address}})))
	}
	watched(t, w)
	w.adopt("1", "2")
	for _, c := range all {
		testworld.Eventually(t, "every client has the step", func() bool { return c.Stats().PolicyHead == w.visibleHead() })
	}
	w.mu.Lock()
	polls := w.polls
	w.mu.Unlock()
	if polls > 3 { // one that the step ended, the next one, and a fetch of trust meanwhile
		t.Errorf("got %d polls of 4 clients", polls)
	}
	for _, c := range all {
		c.Close()
		c.Close()
	}
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			b := make([]byte, 1<<16)
			t.Fatalf("got %d goroutines, want %d:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
	}
	again := testworld.Must(client.New(client.Config{Trust: trust, Addresses: []string{replicas[0].address}}))
	defer again.Close()
	if got := again.Trust().Policy().PolicyHead(); got != w.visibleHead() {
		t.Errorf("a client that comes later begins with head %v, want the newest", got)
	}
}

// TestPinStandsForNothing: the policy no longer contains the pinned identity. The client
// refuses everything until a policy contains it again.
func TestPinStandsForNothing(t *testing.T) {
	w := newWorld(t, "1", "2")
	trust := w.fetch(func(c *client.TrustConfig) {
		c.Task, c.ID = "", w.fetch(nil).Identities()[0].ID
	})
	c := w.clientOf(client.Config{Trust: trust, Refresh: time.Hour}, w.replicas(1, "1")...)
	get(t, c, "ok")
	watched(t, w)
	w.adopt("2")
	testworld.Eventually(t, "the step is adopted", func() bool { return c.Stats().PolicyHead == w.visibleHead() })
	if _, err := do(c, soon(t, testworld.Must(http.NewRequest("GET", "https://"+serverName+"/", nil)))); err == nil {
		t.Error("got a response of a release that policy no longer has")
	}
	w.adopt("1", "2")
	testworld.Eventually(t, "it is reached again", func() bool {
		_, err := do(c, soon(t, testworld.Must(http.NewRequest("GET", "https://"+serverName+"/", nil))))
		return err == nil
	})
}
