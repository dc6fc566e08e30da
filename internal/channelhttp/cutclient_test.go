package channelhttp

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"time"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/ohttp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// unitName is an app that responds with the id of its unit.
var unitName = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	caller, _ := CallerOf(r.Context())
	io.WriteString(w, caller.Unit.String())
})

// TestTwinServesNobodyWhoHeard: one of three units is cut off, ignores it, and continues
// with all keys that it has. It serves no request of a client that knows the cut, neither
// in sessions from before the cut nor in new ones. The other units continue to serve.
func TestTwinServesNobodyWhoHeard(t *testing.T) {
	for _, by := range []string{"task", "id"} {
		t.Run(by, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := newCluster(t, 3, unitName)
				pin := map[string]unitauth.Pin{"task": c.byTask(), "id": c.byID()}[by]
				twin, others, rt := c.units[0], c.units[1:], c.client(pin, 0)
				served := map[string]int{}
				call := func(method string) {
					t.Helper()
					name, err := say(t, rt, method, "/", "")
					if err != nil {
						t.Fatal(err)
					}
					served[name]++
				}
				for range 12 {
					call(http.MethodGet)
				}
				if served[twin.ID().String()] == 0 {
					t.Fatal("the twin served nothing before the cut, so the test shows nothing")
				}
				clear(served)
				c.cutOff(twin.ID())
				c.drawRings()
				for _, u := range others {
					c.renewed(u.Host, "1")
				}
				for range 24 {
					call(http.MethodGet)
					call(http.MethodPost)
				}
				if n := served[twin.ID().String()]; n > 0 {
					t.Errorf("the twin served %d of 48 requests after the cut, want none", n)
				}
			})
		})
	}
}

// TestAnswerAfterTheCut: a response is in progress in a session from before a cut. Once the
// client knows the cut, it accepts nothing more of that response, whichever unit it names.
// A request that may be retried gets its response in another session.
func TestAnswerAfterTheCut(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var slow atomic.Bool
		gate := make(chan struct{})
		c := newCluster(t, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if slow.CompareAndSwap(true, false) {
				if r.URL.Path == "/stream" {
					io.WriteString(w, "before")
					w.(http.Flusher).Flush()
				}
				<-gate
			}
			io.WriteString(w, "after")
		}))
		victim := c.host(channel.Limits{}) // will be cut off, and has the same keys
		rt := c.client(c.byTask(), 0)
		if _, err := say(t, rt, http.MethodGet, "/", ""); err != nil {
			t.Fatal(err)
		}
		cut := func() {
			c.cutOff(victim.ID())
			c.drawRings()
			for _, u := range c.units {
				c.renewed(u.Host, "1")
			}
			gate <- struct{}{}
		}
		type outcome struct {
			body string
			err  error
		}
		begin := func(method, path string) chan outcome {
			slow.Store(true)
			done := make(chan outcome, 1)
			go func() {
				body, err := say(t, rt, method, path, "")
				done <- outcome{body, err}
			}()
			synctest.Wait()
			return done
		}
		done := begin(http.MethodGet, "/")
		cut()
		if got := <-done; got.err != nil || got.body != "after" || rt.Opens() != 2 {
			t.Errorf("GET: got %q, %v, in %d sessions, want an answer in the second", got.body, got.err, rt.Opens())
		}
		victim = c.host(channel.Limits{})
		done = begin(http.MethodPost, "/")
		cut()
		if got := <-done; !errors.Is(got.err, ErrOutcomeUnknown) || !errors.Is(got.err, wire.CutOff) {
			t.Errorf("POST: got %q, %v, want %v", got.body, got.err, ErrOutcomeUnknown)
		}
		victim = c.host(channel.Limits{})
		done = begin(http.MethodGet, "/stream")
		cut()
		if got := <-done; !errors.Is(got.err, wire.CutOff) || strings.Contains(got.body, "after") {
			t.Errorf("stream: got %q, %v, want an end with %q", got.body, got.err, wire.CutOff)
		}
	})
}

// TestAuthorityAway: a unit is cut off, and the others have had no certificate report
// since. A client continues in a session that only one of them has, with requests of every
// kind. Once the units have renewed, it continues in a session that all of them share.
func TestAuthorityAway(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, unitName)
		twin, others := c.units[0], c.units[1:]
		rt := c.client(c.byTask(), 0)
		if _, err := say(t, rt, http.MethodGet, "/", ""); err != nil {
			t.Fatal(err)
		}
		c.cutOff(twin.ID())
		for _, u := range others {
			u.Follow(c.policy)
		}
		served := map[string]int{}
		for range 12 {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				name, err := say(t, rt, method, "/", "content")
				if err != nil {
					t.Fatal(err)
				}
				served[name]++
			}
		}
		s := testworld.Must(rt.Session(t.Context()))
		if opener := s.OpenedBy().UnitID(); !s.Alone() || opener == twin.ID() || served[opener.String()] != 24 {
			t.Errorf("got requests served by %v in a session of %v, alone %v; want all by the unit that holds it alone", served, opener, s.Alone())
		}
		opens := rt.Opens()
		c.drawRings()
		for _, u := range others {
			c.renewed(u.Host, "1")
		}
		if _, err := say(t, rt, http.MethodPost, "/", ""); err != nil {
			t.Fatal(err)
		}
		if s := testworld.Must(rt.Session(t.Context())); !s.Alone() || rt.Opens() != opens {
			t.Error("the session that a unit holds alone ended when the unit renewed")
		}
		c.clock.Advance(renewPause)
		for range 2 { // the first starts to open another session, for which the twin may be asked too
			if _, err := say(t, rt, http.MethodGet, "/", ""); err != nil {
				t.Fatal(err)
			}
			time.Sleep(openTime)
			synctest.Wait()
		}
		if s := testworld.Must(rt.Session(t.Context())); s.Alone() || s.PolicyHead() != c.policy.PolicyHead() {
			t.Errorf("got a session that is alone %v under %v after all units renewed, want one for all under %v", s.Alone(), s.PolicyHead(), c.policy.PolicyHead())
		}
	})
}

// TestOpenerOfAloneEnds: the only unit that has a session ends. The next request gets its
// response in another session.
func TestOpenerOfAloneEnds(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 3, unitName)
		c.cutOff(c.host(channel.Limits{}).ID())
		for _, u := range c.units {
			u.Follow(c.policy)
		}
		rt := c.client(c.byTask(), 0)
		for range 2 {
			name, err := say(t, rt, http.MethodGet, "/", "")
			if err != nil {
				t.Fatal(err)
			}
			c.mu.Lock()
			for _, u := range c.units {
				u.dead = u.dead || u.ID().String() == name
			}
			c.mu.Unlock()
		}
		if rt.Opens() != 2 {
			t.Errorf("got %d sessions, want one for each unit that ended", rt.Opens())
		}
	})
}

// TestClientWaitsForUnits: no unit knows of a cut when a client opens a session. The client
// waits until a unit learns of it from the proved head in the client's own request.
func TestClientWaitsForUnits(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, unitName)
		c.cutOff(c.host(channel.Limits{}).ID())
		rt := c.client(c.byTask(), 0)
		rt.config.Heads = Heads{Newest: func() []byte { return []byte("a proved head") }}
		heard := 0
		for _, u := range c.units {
			u.server.config.Heads = Heads{Received: func([]byte) { heard++; u.Follow(c.policy) }}
		}
		if _, err := say(t, rt, http.MethodGet, "/", ""); err != nil {
			t.Fatal(err)
		}
		if s := testworld.Must(rt.Session(t.Context())); heard == 0 || !s.Alone() {
			t.Errorf("got %d heads heard and a session that is alone %v, want one of a unit that heard", heard, s.Alone())
		}
	})
}

// TestUnheardUnitsKeepClientOut: no proved head reaches the units, so they do not learn of
// the cut, and the client opens no session with them.
func TestUnheardUnitsKeepClientOut(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := newCluster(t, 2, unitName)
		c.cutOff(c.host(channel.Limits{}).ID())
		began := time.Now()
		_, err := say(t, c.client(c.byTask(), 0), http.MethodGet, "/", "")
		testworld.Refused(t, err, wire.Behind)
		if waited := time.Since(began); waited < time.Second || waited > openTime {
			t.Errorf("got an error after %v, want patience of some seconds", waited)
		}
	})
}

// TestOneOffAfterTheCut: a client has keys for one-off requests from before a cut. The
// client refuses those keys, and a unit that knows the cut opens no request under them.
func TestOneOffAfterTheCut(t *testing.T) {
	w := newWorld(t)
	h := w.host(channel.Limits{})
	signed, _, err := h.OHTTPKeys(unitauth.Pin{Task: "scoring"}, noon)
	if err != nil {
		t.Fatal(err)
	}
	keys := testworld.Must(unitauth.VerifyOHTTPKeys(signed, w.byTask(), w.trust(), noon))
	request := oneOffBody(keys, false, testworld.Must(http.NewRequest(http.MethodGet, base+"/", nil)))
	if _, err := h.OpenOHTTP(ohttp.Chunks, strings.NewReader(string(request)), noon); err != nil {
		t.Fatal(err)
	}
	if err := keys.CutOff(w.policy, noon); err != nil {
		t.Errorf("before the cut: %v", err)
	}
	h.Follow(w.cutOff(w.host(channel.Limits{}).ID()))
	_, err = h.OpenOHTTP(ohttp.Chunks, strings.NewReader(string(request)), noon)
	testworld.Refused(t, err, wire.OneOffKey)
	testworld.Refused(t, keys.CutOff(w.policy, noon), wire.CutOff)
	w.adopt("[task.scoring]\n", "[task.scoring]\n# another step\n")
	testworld.Refused(t, keys.CutOff(w.policy, noon), wire.CutOff)
}
