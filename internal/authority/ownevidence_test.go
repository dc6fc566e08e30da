package authority

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/trustresponse"
	"github.com/cohort-tee/cohort/internal/wire"
)

// counted counts the evidence that an attester makes, and makes it when it may.
type counted struct {
	attest.Attester
	made  atomic.Int64
	began chan struct{} // if set, receives a value before each
	may   chan struct{} // if set, each waits for a value of it
	err   atomic.Pointer[error]
}

func (c *counted) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	c.made.Add(1)
	if c.began != nil {
		c.began <- struct{}{}
		select {
		case <-c.may:
		case <-ctx.Done():
			return attest.Evidence{}, context.Cause(ctx)
		}
	}
	if err := c.err.Load(); err != nil {
		return attest.Evidence{}, *err
	}
	return c.Attester.Attest(ctx, data)
}

// count counts the evidence that an authority makes from now on.
func count(a *Authority) *counted {
	c := &counted{Attester: a.attester}
	a.attester = c
	return c
}

// relayed requests trust as a relay does, and returns the response with its Cache-Control.
func relayed(t *testing.T, a *Authority, query string) (response api.TrustResponse, cached string) {
	t.Helper()
	got, body := ask(a.Handler(), http.MethodGet, api.PathTrust+"?"+query, "", "")
	if got.StatusCode != http.StatusOK {
		t.Fatalf("%s: got %d, %s", query, got.StatusCode, body)
	}
	if err := json.Unmarshal([]byte(body), &response); err != nil {
		t.Fatal(err)
	}
	return response, got.Header.Get("Cache-Control")
}

// checkRelayed verifies a response as a client behind a relay does.
func (w *world) checkRelayed(t *testing.T, a *Authority, task string, nonce []byte, response api.TrustResponse) error {
	t.Helper()
	approved := a.inForce().approved
	pinned := testworld.Must(trustresponse.Pin{Task: task}.Identities(approved, w.clock.Now()))
	v, err := trustresponse.Check{
		Policy: approved, Pinned: pinned, Verifier: attesttest.Verifier(), Nonce: nonce, At: w.clock.Now(),
	}.VerifyRelayed(response)
	if err == nil && (len(v.Identities) != len(pinned) || !bytes.Equal(v.Root.Raw, response.Authority)) {
		t.Errorf("got %d identities of task %s", len(v.Identities), task)
	}
	return err
}

// TestSharedTrust: a response without a nonce is verified behind a relay and may be cached. One
// evidence serves all tasks and clients for a minute, and no longer than its head and its leaf.
func TestSharedTrust(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	c := count(a)
	got := func(task string) api.TrustResponse {
		t.Helper()
		response, cached := relayed(t, a, "task="+task)
		if cached != "public, max-age=60" {
			t.Errorf("got Cache-Control %q", cached)
		}
		if len(response.History.Entries) > 0 || response.History.Head != a.inForce().approved.PolicyHead() {
			t.Errorf("got a history with %d entries, head %v", len(response.History.Entries), response.History.Head)
		}
		if err := w.checkRelayed(t, a, task, nil, response); err != nil {
			t.Error(err)
		}
		return response
	}
	made := func(n int64) {
		t.Helper()
		if got := c.made.Load(); got != n {
			t.Errorf("made evidence %d times, want %d", got, n)
		}
	}
	first := got("scoring")
	if second := got("keys"); !bytes.Equal(first.Evidence, second.Evidence) || !bytes.Equal(first.Statement, second.Statement) {
		t.Error("two tasks, two statements")
	}
	w.clock.Advance(59 * time.Second)
	got("scoring")
	made(1)
	w.clock.Advance(time.Second)
	got("scoring")
	made(2)
	w.change(a, tighter...) // which makes evidence to know itself
	before := c.made.Load()
	got("scoring")
	got("keys")
	made(before + 1)
	if err := w.checkRelayed(t, a, "scoring", nil, first); wire.ReasonOf(err) != wire.Behind {
		t.Errorf("the response before the step: %v", err)
	}
	leaf := testworld.Must(a.inForce().authorityLeaf(w.clock.Now()))
	w.wait(a, leaf.RenewAfter.Sub(w.clock.Now())-30*time.Second)
	got("scoring")
	before = c.made.Load()
	w.clock.Advance(31 * time.Second)
	got("scoring")
	made(before + 1)
}

// TestTrustForNonce: a response with a nonce has evidence and a statement of its own, and no cache
// keeps it, nor a refusal.
func TestTrustForNonce(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	c := count(a)
	for i := range 2 {
		nonce := bytes.Repeat([]byte{byte(i)}, api.TrustNonce)
		response, cached := relayed(t, a, "task=scoring&nonce="+hex.EncodeToString(nonce))
		if err := w.checkRelayed(t, a, "scoring", nonce, response); err != nil || cached != "no-store" || c.made.Load() != int64(i+1) {
			t.Errorf("got %v, Cache-Control %q, evidence %d times", err, cached, c.made.Load())
		}
		if err := w.checkRelayed(t, a, "scoring", nil, response); wire.ReasonOf(err) != wire.BadNonce {
			t.Errorf("for a client without a nonce: %v", err)
		}
	}
	shared, _ := relayed(t, a, "task=scoring")
	if err := w.checkRelayed(t, a, "scoring", make([]byte, api.TrustNonce), shared); wire.ReasonOf(err) != wire.BadNonce {
		t.Errorf("a shared response for a client with a nonce: %v", err)
	}
	for _, query := range []string{"task=nosuch", "task=scoring&x=1", ""} {
		if got, _ := ask(a.Handler(), http.MethodGet, api.PathTrust+"?"+query, "", ""); got.StatusCode == http.StatusOK || got.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: got %d, Cache-Control %q", query, got.StatusCode, got.Header.Get("Cache-Control"))
		}
	}
}

// TestSharedTrustOnce: requests for all tasks at once make one evidence. The one that began it may
// leave. Evidence that the TEE did not make is made at the next request.
func TestSharedTrustOnce(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	c := count(a)
	c.began, c.may = make(chan struct{}, 64), make(chan struct{})
	ctx, leave := context.WithCancel(t.Context())
	left := make(chan error)
	go func() {
		_, err := a.trust(ctx, netip.Addr{}, api.TrustQuery{Task: "scoring"})
		left <- err
	}()
	<-c.began
	var all sync.WaitGroup
	responses := make(chan error, 64)
	h := a.Handler()
	for i := range cap(responses) {
		all.Go(func() {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, api.PathTrust+"?task="+[]string{"scoring", "keys"}[i%2], nil))
			var err error
			if w.Code != http.StatusOK {
				err = wire.Refuse(wire.Internal, "status", w.Code, w.Body)
			}
			responses <- err
		})
	}
	testworld.Eventually(t, "all requests wait for one evidence", func() bool {
		stacks := make([]byte, 8<<20)
		return bytes.Count(stacks[:runtime.Stack(stacks, true)], []byte(".sharedEvidence(")) > cap(responses)
	})
	leave()
	if err := <-left; err == nil {
		t.Error("the one that left got a response")
	}
	close(c.may)
	all.Wait()
	for range cap(responses) {
		if err := <-responses; err != nil {
			t.Error(err)
		}
	}
	if got := c.made.Load(); got != 1 {
		t.Fatalf("made evidence %d times, want 1", got)
	}

	w.clock.Advance(time.Minute)
	broken := wire.Refuse(wire.NotThisDevice, "TEE", "silence", "evidence")
	c.err.Store(&broken)
	_, err := a.trust(t.Context(), netip.Addr{}, api.TrustQuery{Task: "scoring"})
	testworld.Refused(t, err, wire.NotThisDevice)
	c.err.Store(nil)
	if _, err := a.trust(t.Context(), netip.Addr{}, api.TrustQuery{Task: "scoring"}); err != nil {
		t.Error(err)
	}
	w.clock.JumpWall(time.Hour)
	_, err = a.trust(t.Context(), netip.Addr{}, api.TrustQuery{Task: "scoring"})
	testworld.Refused(t, err, wire.ClockSkew)
}
