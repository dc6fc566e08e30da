package history_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"

	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/systest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// rootOf is the certificate that a cluster's authority presents as its root.
func rootOf(t *testing.T, c *systest.Cluster) *x509.Certificate {
	t.Helper()
	u, err := url.Parse(c.URL())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := tls.Dial("tcp", u.Host, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[1]
}

// page is what a cluster's authority has after a step.
func page(t *testing.T, c *systest.Cluster, from int) api.History {
	t.Helper()
	a, err := api.NewAuthority(c.URL(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	h, err := a.History(t.Context(), from)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestUnprovedHistory: steps that owners signed count when the authority has signed the head
// they lead to, and the proof may come from a gateway.
func TestUnprovedHistory(t *testing.T) {
	c, other := cluster(t), cluster(t)
	root, seen := rootOf(t, c), extend(t, c.Genesis, c.Steps)
	older := page(t, c, 0)
	peer := dial(t, c, seen.Policy())
	c.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"59m0s\"")
	signed := extend(t, c.Genesis, c.Steps) // signed, and not adopted
	pending := api.History{From: 1, Entries: testworld.Entries(c.Steps[1:]), Head: signed.Policy().PolicyHead()}
	var response api.History
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(response) }))
	defer server.Close()
	at, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	gateway := &history.Gateway{Reader: api.NewGateway(at, http.DefaultClient), Root: root, Clock: time.Now}
	for _, row := range []struct {
		name  string
		proof []byte
		want  wire.Reason
	}{
		{"no proof", nil, wire.Behind},
		{"the proof of an older head", older.ProvedHead, wire.Behind},
		{"another authority's proof", page(t, other, 0).ProvedHead, wire.BadChain},
		{"no head", []byte("proof"), wire.Malformed},
	} {
		response = pending
		response.ProvedHead = row.proof
		h, err := gateway.Watch(t.Context(), seen, c.Genesis, time.Second)
		if err == nil || wire.ReasonOf(err) != row.want || h.Policy().Genuine() {
			t.Errorf("%s: got head %v, %v, want %q", row.name, h.Policy().PolicyHead(), err, row.want)
		}
	}
	if err := peer.PushHistory(t.Context(), signed); err != nil {
		t.Fatal(err)
	}
	response = page(t, c, 1)
	h, err := gateway.Watch(t.Context(), seen, c.Genesis, time.Second)
	if err != nil || h.Policy().PolicyHead() != signed.Policy().PolicyHead() || h.Proved().PolicyHead() != h.Policy().PolicyHead() {
		t.Errorf("with its proof: got head %v, %v", h.Policy().PolicyHead(), err)
	}
}

// TestUnverifiedSteps: bytes that are no head claim no steps.
func TestUnverifiedSteps(t *testing.T) {
	proof := page(t, cluster(t), 0).ProvedHead
	if got := history.UnverifiedSteps(proof); got != 1 || history.UnverifiedSteps(proof[:30]) != 0 || history.UnverifiedSteps(nil) != 0 {
		t.Errorf("got %d steps claimed, want 1", got)
	}
}

// TestWatch: a poll returns the next step once it is adopted.
func TestWatch(t *testing.T) {
	c := cluster(t)
	peer := dial(t, c, extend(t, c.Genesis, c.Steps).Policy())
	seen, err := peer.Watch(t.Context(), history.History{}, c.Genesis, time.Minute) // from nothing it waits for nothing
	if err != nil {
		t.Fatal(err)
	}
	same, err := peer.Watch(t.Context(), seen, c.Genesis, 20*time.Millisecond)
	if err != nil || same.Policy().PolicyHead() != seen.Policy().PolicyHead() || !same.Proved().Verified() {
		t.Fatalf("without a step: got %v, %v", same.Policy().PolicyHead(), err)
	}
	c.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"59m0s\"")
	newer := extend(t, c.Genesis, c.Steps)
	time.AfterFunc(50*time.Millisecond, func() { _ = peer.PushHistory(context.Background(), newer) })
	got, err := peer.Watch(t.Context(), seen, c.Genesis, 20*time.Second)
	if err != nil || got.Policy().PolicyHead() != newer.Policy().PolicyHead() {
		t.Errorf("got head %v, %v", got.Policy().PolicyHead(), err)
	}
}

// scripted is a source that a test plays.
type scripted struct {
	mu    sync.Mutex
	polls []time.Duration // waits of the polls that came
	times []time.Time     // when
	play  func(ctx context.Context, h history.History, wait time.Duration) (history.History, error)
}

func (s *scripted) Watch(ctx context.Context, h history.History, _ attest.Digest, wait time.Duration) (history.History, error) {
	s.mu.Lock()
	s.polls, s.times = append(s.polls, wait), append(s.times, time.Now())
	play := s.play
	s.mu.Unlock()
	return play(ctx, h, wait)
}

func (s *scripted) PushHistory(context.Context, history.History) error { return nil }

func (s *scripted) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.polls)
}

// unwaited is how many requests came that did not wait.
func (s *scripted) unwaited() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, wait := range s.polls {
		if wait == 0 {
			n++
		}
	}
	return n
}

// waits is a source with no step.
func waits(ctx context.Context, h history.History, wait time.Duration) (history.History, error) {
	select {
	case <-time.After(wait):
		return h, nil
	case <-ctx.Done():
		return h, ctx.Err()
	}
}

func full(ctx context.Context, h history.History, wait time.Duration) (history.History, error) {
	if wait == 0 {
		return h, nil
	}
	return history.History{}, wire.Refuse(wire.Overload, "polls", "all", "one")
}

func away(context.Context, history.History, time.Duration) (history.History, error) {
	return history.History{}, errors.New("connection refused")
}

// watch runs a watcher of sources in a bubble for a time.
func watch(t *testing.T, current history.History, d time.Duration, hints func(*history.Watcher), sources ...*scripted) {
	bubble.Test(t, func(t *testing.T) {
		w := history.Watcher{Current: func() history.History { return current }, Adopt: func(history.History) {}, Wait: func() time.Duration { return api.MaxPoll }}
		for _, s := range sources {
			w.AddSource(s)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); w.Run(ctx) }()
		if hints != nil {
			hints(&w)
		}
		time.Sleep(d)
		cancel()
		<-done
	})
}

// TestWatcherSources: one poll at a time waits at the first source that has a place; where
// none has, the watcher asks without waiting each 5 to 15 seconds; where none responds it
// backs off; and the first source is tried again after a minute.
func TestWatcherSources(t *testing.T) {
	current := history.History{}
	one := &scripted{play: waits}
	watch(t, current, 5*time.Minute, nil, one)
	if got := one.count(); got < 10 || got > 12 {
		t.Errorf("one source: got %d polls in 5 minutes, want one each 30 s", got)
	}

	first, second := &scripted{play: full}, &scripted{play: waits}
	watch(t, current, 30*time.Second, nil, first, second)
	if first.count() != 1 || second.count() < 1 {
		t.Errorf("the first is full: got %d and %d polls", first.count(), second.count())
	}

	crowded := &scripted{play: full}
	watch(t, current, 100*time.Second, nil, crowded)
	if unwaited := crowded.unwaited(); unwaited < 6 || unwaited > 21 {
		t.Errorf("no place: got %d requests without waiting in 100 s, want one each 5 to 15", unwaited)
	}

	gone := &scripted{play: away}
	watch(t, current, 100*time.Second, nil, gone)
	if got := gone.count(); got < 20 || got > 50 {
		t.Errorf("away: got %d polls in 100 s, want a back-off to 5 s", got)
	}

	first, second = &scripted{play: away}, &scripted{play: waits}
	watch(t, current, 5*time.Minute, nil, first, second)
	if got := first.count(); got < 3 || got > 6 {
		t.Errorf("the first away: got %d polls there in 5 minutes, want one each minute", got)
	}
	if got := second.count(); got < 8 {
		t.Errorf("the first away: got %d polls at the second", got)
	}
}

// TestWatcherHints: a proved newer head that somebody shows makes the watcher ask at once,
// three times, then every 5 seconds. What is not proved, or not newer, does nothing.
func TestWatcherHints(t *testing.T) {
	c, other := cluster(t), cluster(t)
	root, seen := rootOf(t, c), extend(t, c.Genesis, c.Steps)
	same := page(t, c, 0).ProvedHead
	for _, each := range []*systest.Cluster{c, other} {
		each.NextPolicy("lifetime = \"1h0m0s\"", "lifetime = \"59m0s\"")
		p := dial(t, each, extend(t, each.Genesis, each.Steps[:1]).Policy())
		if err := p.PushHistory(t.Context(), extend(t, each.Genesis, each.Steps)); err != nil {
			t.Fatal(err)
		}
	}
	newer, forged := page(t, c, 0).ProvedHead, page(t, other, 0).ProvedHead
	at := time.Now()

	source := &scripted{play: waits}
	watch(t, seen, time.Second, func(w *history.Watcher) {
		synctest.Wait()
		for _, head := range [][]byte{same, forged, nil, newer[:40]} {
			w.HintHead(head, root, at)
			time.Sleep(10 * time.Millisecond)
		}
		if got := source.count(); got != 1 {
			t.Errorf("hints that prove nothing newer: got %d polls, want 1", got)
		}
		for range 5 {
			w.HintHead(newer, root, at)
			time.Sleep(10 * time.Millisecond)
			synctest.Wait()
		}
		if got := source.unwaited(); got != 3 {
			t.Errorf("five hints: got %d requests, want 3", got)
		}
		time.Sleep(5 * time.Second)
		w.HintHead(newer, root, at)
		w.HintHead(newer, root, at)
		synctest.Wait()
		if got := source.unwaited(); got != 4 {
			t.Errorf("after 5 s: got %d requests, want 4", got)
		}
	}, source)
}
