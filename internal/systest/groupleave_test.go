package systest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// trialURL is the URL of requests in sessions with the group.
const trialURL = "https://trial." + Domain

// astray is a gateway that forwards session openings to one unit and everything else to
// another.
func astray(t *testing.T, opens, requests *Replica) (gateway string) {
	t.Helper()
	bring := func(to *Replica) http.Handler {
		return &httputil.ReverseProxy{
			Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "https", Host: to.Address}) },
			Transport: anyone(), ErrorLog: log.New(io.Discard, "", 0),
		}
	}
	mux := http.NewServeMux()
	mux.Handle(wire.PathSession, bring(opens))
	mux.Handle("/", bring(requests))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL
}

// whole opens a channel to the whole group, closed with the test.
func whole(t *testing.T, config client.OpenConfig) *client.Channel {
	t.Helper()
	return inRole(t, client.Whole, config)
}

// inRole opens a channel to a role, closed with the test.
func inRole(t *testing.T, role string, config client.OpenConfig) *client.Channel {
	t.Helper()
	config.Role = role
	ch, err := client.OpenGroup(t.Context(), config)
	if err != nil {
		t.Fatalf("opening a session with %s: %v", role, err)
	}
	t.Cleanup(func() { ch.Close(context.Background()) })
	return ch
}

// answerer returns the name of the unit that responds, or "" without a response.
func answerer(t *testing.T, ch *client.Channel) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	answer, err := send(ctx, ch, http.MethodGet, "")
	if err != nil {
		return ""
	}
	return answer
}

// send sends a request and returns the content of the response.
func send(ctx context.Context, ch *client.Channel, method, key string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, method, trialURL, nil)
	if err != nil {
		return "", err
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	answer, err := ch.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

// sending sends requests that may be retried until end is called. end returns the number of
// requests and the errors.
func sending(t *testing.T, ch *client.Channel) (end func() (sent int, failed []error)) {
	var done sync.WaitGroup
	var mu sync.Mutex // guards sent and failed
	var sent int
	var failed []error
	over := make(chan struct{})
	for worker, method := range []string{http.MethodGet, http.MethodPost} {
		done.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-over:
					return
				case <-time.After(10 * time.Millisecond):
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*requestTimeout)
				_, err := send(ctx, ch, method, fmt.Sprint(worker, "-", n))
				cancel()
				mu.Lock()
				if sent++; err != nil {
					failed = append(failed, err)
				}
				mu.Unlock()
			}
		})
	}
	return func() (int, []error) { close(over); done.Wait(); return sent, failed }
}

// TestMemberLeaves: the roster changes and the scorer leaves, while sessions with the whole
// group and with a role are open. Clients continue without intervention, and requests that
// may be retried succeed. Units of the new roster serve nothing in sessions that the scorer
// opened. The scorer serves nothing in sessions that they open, and nothing at all once its
// certificate ends.
func TestMemberLeaves(t *testing.T) {
	t.Parallel()
	c := newFour(t, policyfile.Shared)
	g := four
	g.Life = 6 * time.Second
	parties := c.FormGroup(g)
	c.ApproveGroup("trial", parties)
	c.StartManager()
	units := map[string]*Replica{}
	for _, role := range g.Roles {
		units[role] = c.StartMember("trial", role, role+" 1", hello(role))
	}
	holder, scorer := units["holder"], units["scorer"]
	attended(t, holder, scorer, units["adder"], units["broker"])
	managed := client.OpenConfig{Trust: c.GroupTrust("trial"), Gateway: "https://" + c.manager.listen, CA: c.manager.ca}
	at := func(opens, requests *Replica) client.OpenConfig {
		return client.OpenConfig{Trust: c.GroupTrust("trial"), Gateway: astray(t, opens, requests)}
	}
	byScorer, byHolder := whole(t, at(scorer, holder)), whole(t, at(holder, scorer))
	if one, two := answerer(t, byScorer), answerer(t, byHolder); one != "holder" || two != "scorer" {
		t.Fatalf("members in sessions of each other: got answers of %q and %q", one, two)
	}
	loads := map[*client.Channel]func() (int, []error){}
	for _, role := range []string{client.Whole, "holder"} {
		ch := inRole(t, role, managed)
		loads[ch] = sending(t, ch)
	}
	former := c.Approved().GroupByName("trial").ID()
	c.Adopt("[group.trial.role]\n", "continues = \""+former.String()+"\"\n[group.trial.role]\n",
		`scorer = { members = [ { party = "scorer", task = "scorer", release = "1" } ], calls = ["adder", "broker", "holder"] }`+"\n", "")
	delete(parties, "scorer")
	c.ApproveGroup("trial", parties)
	next := c.Approved().GroupByName("trial").ID()
	testworld.Within(t, 4*g.Life, "the holder to hold the new identity", func() bool { return holder.Unit.Identity().ID == next })

	for range 3 {
		if got := answerer(t, byScorer); got != "" {
			t.Errorf("in a session that the member opened that left: got an answer of %q", got)
		}
		if got := answerer(t, whole(t, at(holder, scorer))); got != "" {
			t.Errorf("in a session of the new roster: got an answer of %q", got)
		}
	}
	testworld.Within(t, 4*g.Life, "the end of the member that left", func() bool { return scorer.Unit.Ready() != nil })
	testworld.Refused(t, scorer.Unit.Ready(), wire.CertExpired)
	for name, ch := range map[string]*client.Channel{"it opened": byScorer, "others opened": byHolder} {
		if got := answerer(t, ch); got != "" {
			t.Errorf("after the certificate's end, in a session that %s: got an answer of %q", name, got)
		}
	}
	for ch, end := range loads {
		sent, failed := end()
		twice := 0
		for _, err := range failed {
			if !errors.Is(err, wire.Rekey) {
				t.Errorf("one of %d requests failed: %v", sent, err)
			} else if twice++; twice > 1+sent/100 { // a call reopens one session; that unit may change too
				t.Errorf("%d of %d requests met two units that changed, the last: %v", twice, sent, err)
			}
		}
		if ch.Opens() < 2 {
			t.Errorf("got %d sessions, want another one at least", ch.Opens())
		}
		t.Logf("%d requests over the change, %d sessions, %d met two units that changed", sent, ch.Opens(), twice)
	}
}

// TestCutMember: owners cut one unit of a role off by its id. That unit stops; the group,
// the role's other unit and its callers continue.
func TestCutMember(t *testing.T) {
	t.Parallel()
	c := newFour(t, policyfile.Shared)
	g := four
	g.Life = 4 * time.Second
	c.ApproveGroup("trial", c.FormGroup(g))
	bad, good := c.StartMember("trial", "holder", "holder 1", whoCalled), c.StartMember("trial", "holder", "holder 1", whoCalled)
	adder := c.StartMember("trial", "adder", "adder 1", whoCalled)
	id := c.Approved().GroupByName("trial").ID()
	c.Adopt("[task.holder]\n", fmt.Sprintf("[task.holder]\ncut_units = [%q]\n", bad.Unit.ID()))
	testworld.Within(t, 4*g.Life, "the unit that was cut off to stop", func() bool { return bad.Unit.Ready() != nil })
	testworld.Refused(t, bad.Unit.Ready(), wire.CutOff)
	if _, err := callPeer(adder, "trial", "holder", bad); err == nil {
		t.Error("the unit that was cut off still serves")
	}
	testworld.Within(t, 4*g.Life, "the other unit to hold the role's next pair", func() bool {
		got, err := callPeer(adder, "trial", "holder", good)
		return err == nil && got == "adder"
	})
	if got := good.Unit.Identity().ID; got != id {
		t.Errorf("the other unit of the role: got group %v, want group %v as before", got, id)
	}
}
