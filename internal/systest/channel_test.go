package systest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit"
)

const scoringURL = "https://scoring." + Domain

// service is a handler that counts executions over all units together.
type service struct {
	mu   sync.Mutex
	seen map[string]int // guarded by mu: executions, by the request's mark
}

// ServeHTTP responds with the request's mark and the unit's id.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	mark := r.Header.Get("Mark")
	s.mu.Lock()
	if key := r.Header.Get("Idempotency-Key"); key == "" || s.seen[mark] == 0 {
		s.seen[mark]++
	}
	s.mu.Unlock()
	caller, ok := unit.CallerOf(r.Context())
	if !ok {
		http.Error(w, "not through the channel", http.StatusForbidden)
		return
	}
	fmt.Fprintf(w, "%s %s", caller.Unit, mark)
}

// executed returns the number of executions by mark.
func (s *service) executed() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.seen)
}

// shared starts a cluster of n units with a manager.
func shared(t *testing.T, n int, life time.Duration, h http.Handler) (*Cluster, []*Replica) {
	t.Helper()
	c := New(t, scoring(life))
	c.StartManager()
	var units []*Replica
	for range n {
		units = append(units, c.Start("scoring", "scoring 1", h))
	}
	attended(t, units...)
	return c, units
}

// attended waits until each unit is connected to the manager, and for one more heartbeat.
func attended(t *testing.T, units ...*Replica) {
	t.Helper()
	for _, u := range units {
		testworld.Within(t, 10*time.Second, "the unit to meet the manager", func() bool { return u.Unit.Stats().Manager })
	}
	time.Sleep(300 * time.Millisecond)
}

// call sends a request with a mark, and returns the id of the unit that responded.
func call(ctx context.Context, ch *client.Channel, method, mark, key string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*requestTimeout) // a gateway takes up to 8 s to notice that a unit is gone
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, scoringURL+"/count", nil)
	if err != nil {
		return "", err
	}
	r.Header.Set("Mark", mark)
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	answer, err := ch.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	id, got, _ := strings.Cut(string(b), " ")
	if answer.StatusCode != http.StatusOK || got != mark {
		return "", fmt.Errorf("status %d, answer %q, want %q", answer.StatusCode, b, mark)
	}
	return id, nil
}

// opener returns the unit that opened the channel's session.
func opener(t *testing.T, ch *client.Channel, units []*Replica) *Replica {
	t.Helper()
	s, err := ch.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(units, func(r *Replica) bool { return r.Unit.ID() == s.Unit.UnitID() })
	if i < 0 {
		t.Fatalf("session opened by %v, which is none of the units", s.Unit.UnitID())
	}
	return units[i]
}

// TestTicketsAlone: units whose manager is unreachable share sessions through the clients'
// tickets.
func TestTicketsAlone(t *testing.T) {
	t.Parallel()
	c, units := shared(t, 2, time.Hour, &service{seen: map[string]int{}})
	ch := c.OpenChannel(c.OpenConfig("scoring"))
	opener(t, ch, units).Kill()
	c.StopManager()
	c.WipeManager()
	late := c.Start("scoring", "scoring 1", &service{seen: map[string]int{}})
	c.StartManager()
	attended(t, late)
	for _, r := range units {
		r.Stop()
	}
	id, err := call(t.Context(), ch, http.MethodGet, "mark", "")
	if err != nil || id != late.Unit.ID().String() {
		t.Fatalf("got %s, %v, want an answer of the unit that came late", id, err)
	}
	if got := ch.Opens(); got != 1 {
		t.Errorf("got %d handshakes, want 1", got)
	}
}

// TestManagerLost: the manager is stopped and restarted, then stopped again and its data
// deleted. Open sessions continue, new sessions open, and units share them again.
func TestManagerLost(t *testing.T) {
	c, units := shared(t, 2, time.Hour, &service{seen: map[string]int{}})
	ch := c.OpenChannel(c.OpenConfig("scoring"))
	for _, step := range []func(){func() {}, c.WipeManager} {
		c.StopManager()
		if err := units[0].Unit.Ready(); err != nil {
			t.Errorf("without a manager: %v", err)
		}
		step()
		c.StartManager()
		for i := range 10 {
			if _, err := call(t.Context(), ch, http.MethodPost, fmt.Sprint(i), ""); err != nil {
				t.Errorf("open session: %v", err)
			}
		}
		attended(t, units...)
		second := c.OpenChannel(c.OpenConfig("scoring"))
		for i := range 10 {
			if _, err := call(t.Context(), second, http.MethodPost, fmt.Sprint(i), ""); err != nil {
				t.Errorf("new session: %v", err)
			}
		}
		if got := second.Opens(); got != 1 {
			t.Errorf("got %d handshakes of the new channel, want 1", got)
		}
	}
	if got := ch.Opens(); got != 1 {
		t.Errorf("got %d handshakes, want 1", got)
	}
}

// TestReceipt: a receipt verifies offline and names the unit that responded. Verification
// fails after a change to the request, the response or the signature.
func TestReceipt(t *testing.T) {
	c, units := shared(t, 2, time.Hour, &service{seen: map[string]int{}})
	config := c.OpenConfig("scoring")
	config.Receipts, config.FreshEvidence = true, true
	ch := c.OpenChannel(config)
	if s, err := ch.Session(t.Context()); err != nil || !s.Evidence.Appraised() {
		t.Errorf("fresh evidence: %v, %v", s.Evidence, err)
	}
	var record client.Record
	id, err := call(client.WithRecord(t.Context(), &record), ch, http.MethodPost, "receipt", "")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	c.StopAuthority() // offline
	for _, u := range units {
		u.Stop()
	}
	receipt, err := client.VerifyReceipt(record, config.Trust, at)
	if err != nil {
		t.Fatal(err)
	}
	if got := receipt.Unit.UnitID().String(); got != id {
		t.Errorf("receipt of unit %s, want %s", got, id)
	}
	changed := func(b []byte, at int) []byte {
		b = slices.Clone(b)
		b[(at+len(b))%len(b)] ^= 1
		return b
	}
	for _, row := range []struct {
		name   string
		change func(*client.Record)
		want   wire.Reason
	}{
		{"request", func(r *client.Record) { r.Request = changed(r.Request, 3) }, wire.BadDigest},
		{"answer", func(r *client.Record) { r.Response = changed(r.Response, 3) }, wire.BadDigest},
		{"signature", func(r *client.Record) { r.Receipt = changed(r.Receipt, -1) }, wire.BadSignature},
	} {
		r := record
		row.change(&r)
		_, err := client.VerifyReceipt(r, config.Trust, at)
		if !errors.Is(err, row.want) {
			t.Errorf("changed %s: got %v, want reason %q", row.name, err, row.want)
		}
	}
}

// TestCloseSession: all units confirm that a session is closed, and no ticket reopens it.
func TestCloseSession(t *testing.T) {
	c, units := shared(t, 3, time.Hour, &service{seen: map[string]int{}})
	ch := c.OpenChannel(c.OpenConfig("scoring"))
	for i := range 6 {
		if _, err := call(t.Context(), ch, http.MethodGet, fmt.Sprint(i), ""); err != nil {
			t.Fatal(err)
		}
	}
	closed := ch.Close(t.Context())
	if got := len(closed.Confirmed); got != len(units) {
		t.Errorf("got %d confirmations, want %d", got, len(units))
	}
	if left := time.Until(closed.Others); left <= 0 || left > time.Hour {
		t.Errorf("others may hold it for %v", left)
	}
	if _, err := call(t.Context(), ch, http.MethodGet, "late", ""); !errors.Is(err, client.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
}

// TestPins: a channel pinned to an identity of the cluster works; a channel pinned to the
// same code under another authority does not open.
func TestPins(t *testing.T) {
	waits(t)
	c, _ := shared(t, 2, time.Hour, &service{seen: map[string]int{}})
	pins := c.TrustConfig("")
	pins.ID = trust(t, c).Identities()[0].ID
	config := c.OpenConfig("scoring")
	var err error
	if config.Trust, err = client.FetchTrust(t.Context(), pins); err != nil {
		t.Fatal(err)
	}
	ch := c.OpenChannel(config)
	for i := range 4 {
		if _, err := call(t.Context(), ch, http.MethodPost, fmt.Sprint(i), ""); err != nil {
			t.Error(err)
		}
	}
	if got := ch.Opens(); got != 1 {
		t.Errorf("got %d handshakes, want 1", got)
	}

	theirs := New(t, scoring(time.Hour)) // the same code under another authority
	config.Trust = trust(t, theirs)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if ch, err := client.Open(ctx, config); err == nil {
		ch.Close(ctx)
		t.Error("a unit of another authority was accepted")
	}
}

// TestPolicyMovesOn: a client with an older policy than the unit fetches the newer policy
// before it accepts a session. If it cannot fetch it, it refuses the session.
func TestPolicyMovesOn(t *testing.T) {
	t.Parallel()
	c, units := shared(t, 1, 3*time.Second, &service{seen: map[string]int{}})
	old, cannot := c.OpenConfig("scoring"), c.OpenConfig("scoring")
	push(t, c, c.NextPolicy("lifetime = \"3s\"", "lifetime = \"4s\""))
	before := units[0].Unit.Stats().Renewals
	testworld.Within(t, 10*time.Second, "two renewals", func() bool { return units[0].Unit.Stats().Renewals >= before+2 })
	if got := c.OpenChannel(old).Trust().Policy().Document().Sequence; got != 2 {
		t.Errorf("got sequence %d, want 2", got)
	}
	c.StopAuthority()
	_, err := client.Open(t.Context(), cannot)
	testworld.Refused(t, err, wire.Behind)
}

// TestPolicyJustMovedOn: a client that fetched trust a moment ago gets a unit with a newer
// policy, and still opens a session with it.
func TestPolicyJustMovedOn(t *testing.T) {
	c := New(t, scoring(time.Hour))
	config := client.OpenConfig{Trust: trust(t, c)}
	push(t, c, c.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"59m0s\""))
	r := c.Start("scoring", "scoring 1", &service{seen: map[string]int{}})
	config.Gateway = astray(t, r, r)
	if got := c.OpenChannel(config).Trust().Policy().Document().Sequence; got != 2 {
		t.Errorf("got sequence %d, want 2", got)
	}
}
