package authority

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// provedBy parses and verifies the proved head in an authority's response.
func (w *world) provedBy(a *Authority, h api.History) (identity.ProvedHead, error) {
	root := testworld.Must(x509.ParseCertificate(a.inForce().issuer.AuthorityRoot()))
	at, _ := w.clock.Read()
	return identity.ParseHead(h.ProvedHead, a.inForce().approved, root, at)
}

// polled is the result of a poll.
type polled struct {
	history api.History
	err     error
}

func poll(ctx context.Context, client *api.Authority, head wire.Digest, wait time.Duration) <-chan polled {
	done := make(chan polled, 1)
	go func() {
		h, err := client.PollHistory(ctx, head, wait)
		done <- polled{h, err}
	}()
	return done
}

func pollsOfUnits(a *Authority) int { units, _ := a.polls.InUse(); return units }

func pollsOfOthers(a *Authority) int { _, others := a.polls.InUse(); return others }

// TestPoll: polls wait for the next step and return it with the proved head.
func TestPoll(t *testing.T) {
	w := newWorld(t, `delay = "1h"`, `delay = "0s"`)
	a := w.open()
	client, _ := w.serve(a)
	genesis := a.inForce().approved.PolicyHead()

	empty := <-poll(t.Context(), client, genesis, 50*time.Millisecond)
	if h, err := w.provedBy(a, empty.history); empty.err != nil || err != nil || len(empty.history.Entries) != 0 || h.PolicyHead() != genesis || h.Steps() != 1 || h.Spread() != time.Second {
		t.Fatalf("without a step: got %+v, %v; head %v, %v", empty.history, empty.err, h.PolicyHead(), err)
	}
	var all []<-chan polled
	for range 5 {
		all = append(all, poll(t.Context(), client, genesis, api.MaxPoll))
	}
	testworld.Eventually(t, "5 polls wait", func() bool { return pollsOfOthers(a) == 5 })
	step := w.SignPolicy(w.NextText(a.inForce().approved, tighter...), "ana", "ben")
	testworld.Must(a.history.Propose(t.Context(), proposal(step)))
	for _, done := range all {
		got := <-done
		if got.err != nil || got.history.From != 1 || len(got.history.Entries) != 1 || string(got.history.Entries[0].Policy) != string(step.Policy) {
			t.Fatalf("got %+v, %v", got.history, got.err)
		}
		if h, err := w.provedBy(a, got.history); err != nil || h.PolicyHead() != got.history.Head || h.PolicyHead() != a.inForce().approved.PolicyHead() || h.Steps() != 2 {
			t.Errorf("got head %v after %d steps, %v", h.PolicyHead(), h.Steps(), err)
		}
	}
	testworld.Eventually(t, "all places are given back", func() bool { return pollsOfOthers(a) == 0 })

	older := <-poll(t.Context(), client, genesis, api.MaxPoll) // does not wait
	if older.err != nil || len(older.history.Entries) != 1 {
		t.Errorf("from an older head: got %+v, %v", older.history, older.err)
	}
	_, err := client.PollHistory(t.Context(), wire.Digest{1}, api.MaxPoll)
	testworld.Refused(t, err, wire.Behind)
	for _, query := range []string{"from=1&wait=1s", "wait=1s", "from=" + genesis.Hex() + "&wait=31s", "from=" + genesis.Hex() + "&wait=-1s", "from=" + genesis.Hex() + "&wait=long"} {
		if response, body := ask(a.Handler(), http.MethodGet, api.PathHistory+"?"+query, "", ""); response.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: got %d %s", query, response.StatusCode, body)
		}
	}
	paged := testworld.Must(client.History(t.Context(), 0))
	if h, err := w.provedBy(a, paged); err != nil || h.PolicyHead() != paged.Head || len(paged.Entries) != 2 {
		t.Errorf("by index: got %d steps, head %v, %v", len(paged.Entries), h.PolicyHead(), err)
	}
	report := testworld.Must(w.scoring().enrol(direct{a}))
	if h, err := w.provedBy(a, api.History{ProvedHead: report.ProvedHead}); err != nil || h.PolicyHead() != report.Head {
		t.Errorf("in a report: got head %v, %v", h.PolicyHead(), err)
	}
}

// TestPollStatement: a party's statement ends a poll, like any step.
func TestPollStatement(t *testing.T) {
	w := grouped(t)
	a := w.open()
	client, _ := w.serve(a)
	done := poll(t.Context(), client, a.inForce().approved.PolicyHead(), api.MaxPoll)
	testworld.Eventually(t, "the poll waits", func() bool { return pollsOfOthers(a) == 1 })
	heard := testworld.Must(w.say(a, "north", nil))
	if got := <-done; got.err != nil || got.history.Head != heard.Head || !policy.IsStatement(got.history.Entries[0].Policy) {
		t.Errorf("got %+v, %v", got.history, got.err)
	}
}

// TestPollPlaces: polls have their own places. An address has no more than its share, a unit
// takes a place of units, a client that disconnects frees its place, and polls never take the
// places of other requests.
func TestPollPlaces(t *testing.T) {
	w := newWorld(t)
	c := w.config("authority")
	c.Limits.PollsPerAddress, c.Limits.Connections, c.Limits.Requests = 3, 2, 1
	a := testworld.Must(Open(t.Context(), c))
	client, address := w.serve(a)
	head := a.inForce().approved.PolicyHead()
	gone, leave := context.WithCancel(t.Context())
	var mine []<-chan polled
	for n := range 3 { // one after the other, because only two connections may be idle
		mine = append(mine, poll(gone, client, head, api.MaxPoll))
		testworld.Eventually(t, "a poll waits", func() bool { return pollsOfOthers(a) == n+1 })
	}
	_, err := client.PollHistory(t.Context(), head, api.MaxPoll)
	testworld.Refused(t, err, wire.Overload)
	if !strings.Contains(err.Error(), admission.QuotaOthers) {
		t.Errorf("got %v, want the quota's name", err)
	}
	testworld.Must(client.Policy(t.Context())) // a request is served beside the polls

	units, unit := w.unitClient(a, address)
	if unit == nil {
		t.Fatal("no unit")
	}
	waiting := poll(t.Context(), units, head, 200*time.Millisecond)
	testworld.Eventually(t, "the unit's poll waits", func() bool { return pollsOfUnits(a) == 1 })
	if got := <-waiting; got.err != nil {
		t.Errorf("the unit's poll: %v", got.err)
	}

	leave()
	for _, done := range mine {
		if got := <-done; !errors.Is(got.err, context.Canceled) {
			t.Errorf("got %v", got.err)
		}
	}
	testworld.Eventually(t, "the places of clients that went away are given back", func() bool { return pollsOfOthers(a) == 0 })
	if got := <-poll(t.Context(), client, head, time.Millisecond); got.err != nil {
		t.Error(got.err)
	}
}

// unitClient returns a client that presents the signing certificate of a unit.
func (w *world) unitClient(a *Authority, address string) (*api.Authority, *applicant) {
	w.T.Helper()
	p := w.scoring()
	report := testworld.Must(p.enrol(direct{a}))
	config := w.clientTLS(a)
	config.Certificates = []tls.Certificate{{Certificate: [][]byte{report.Unit, report.Cross}, PrivateKey: p.signing}}
	client := testworld.Must(api.NewAuthority(address, config))
	w.T.Cleanup(client.Close)
	return client, p
}

// TestPollRefused: over HTTP, a poll without a place gets status 503 and Retry-After.
func TestPollRefused(t *testing.T) {
	w := newWorld(t)
	c := w.config("authority")
	c.Limits.StrangerPolls, c.Limits.PollsPerAddress = 1, 1
	a := testworld.Must(Open(t.Context(), c))
	server := httptest.NewServer(a.Handler())
	defer server.Close()
	query := api.PathHistory + "?from=" + a.inForce().approved.PolicyHead().Hex() + "&wait=30s"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		if r, err := http.DefaultClient.Do(testworld.Must(http.NewRequestWithContext(ctx, http.MethodGet, server.URL+query, nil))); err == nil {
			r.Body.Close()
		}
	}()
	testworld.Eventually(t, "a poll waits", func() bool { return pollsOfOthers(a) == 1 })
	response := testworld.Must(http.Get(server.URL + query))
	body := testworld.Must(io.ReadAll(response.Body))
	response.Body.Close()
	if response.StatusCode != http.StatusServiceUnavailable || response.Header.Get("Retry-After") != "10" || !strings.Contains(string(body), admission.QuotaOthers) {
		t.Errorf("got %d, Retry-After %q, %s", response.StatusCode, response.Header.Get("Retry-After"), body)
	}
	_, metrics := ask(a.OperatorHandler(), http.MethodGet, api.PathMetrics, "", "")
	if want := fmt.Sprintf("cohort_authority_crowded_total{quota=%q} 1", admission.QuotaOthers); !strings.Contains(metrics, want) {
		t.Errorf("metrics: want %s", want)
	}
}

// TestPollShutdown: polls end at once when the authority shuts down, so the shutdown does not
// wait for them.
func TestPollShutdown(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	listener := testworld.Must(net.Listen("tcp", "127.0.0.1:0"))
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, listener) }()
	client := testworld.Must(api.NewAuthority("https://"+listener.Addr().String(), w.clientTLS(a)))
	defer client.Close()
	var done []<-chan polled
	for range 4 {
		done = append(done, poll(t.Context(), client, a.inForce().approved.PolicyHead(), api.MaxPoll))
	}
	testworld.Eventually(t, "the polls wait", func() bool { return pollsOfOthers(a) == 4 })
	begin := time.Now()
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > endWait/2 {
		t.Errorf("shutting down took %v", took)
	}
	for _, d := range done {
		if got := <-d; wire.ReasonOf(got.err) != wire.Unavailable {
			t.Errorf("got %v, want %q", got.err, wire.Unavailable)
		}
	}
}

// TestHintsAreNotProved: an authority that is behind, or whose clock is refused, signs no head.
func TestHintsAreNotProved(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	w.clock.JumpWall(time.Hour)
	if h := a.proveHistory(a.history.Current(), 0); h.ProvedHead != nil || len(h.Entries) != 1 {
		t.Errorf("clock: got proof %x of %d steps", h.ProvedHead, len(h.Entries))
	}
	w.clock.JumpWall(-time.Hour)
	testworld.NoError(t, a.history.RecordBackup(t.Context(), backup.Header{ID: "1", Created: noon, Head: wire.Digest{1}}))
	testworld.NoError(t, a.history.Sync(t.Context()))
	if h := a.proveHistory(a.history.Current(), 0); h.ProvedHead != nil {
		t.Errorf("behind: got proof %x", h.ProvedHead)
	}
	_, err := a.historyAfter(a.history.Current(), a.inForce().approved.PolicyHead())
	testworld.Refused(t, err, wire.Behind)
}

// TestSpread: renewals are spread over a time that grows with the number of running units.
func TestSpread(t *testing.T) {
	for _, c := range []struct {
		live int
		want time.Duration
	}{{0, time.Second}, {500, time.Second}, {1000, 2 * time.Second}, {16_384, 32768 * time.Millisecond}, {1 << 60, mostSpread}} {
		if got := spreadOf(c.live); got != c.want {
			t.Errorf("%d units: got %v, want %v", c.live, got, c.want)
		}
	}
	w := newWorld(t)
	a := w.open()
	for range 3 {
		testworld.Must(w.scoring().enrol(direct{a}))
	}
	left := w.scoring()
	testworld.Must(left.enrol(direct{a}))
	testworld.Must(a.leave(t.Context(), left.leaving()))
	if n, err := a.countLiveUnits(t.Context()); n != 3 || err != nil {
		t.Errorf("got %d live units, %v, want 3", n, err)
	}
	w.clock.Advance(2 * time.Hour)
	if n, err := a.countLiveUnits(t.Context()); n != 0 || err != nil {
		t.Errorf("after their lifetime: got %d live units, %v", n, err)
	}
}
