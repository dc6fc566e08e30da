package systest

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/wire"
)

// oneOff is a client of one-off requests through the manager's gateway.
func oneOff(t *testing.T, c *Cluster, trust *client.Trust, whole bool) *client.OneOff {
	t.Helper()
	config := c.OpenConfig("scoring")
	o, err := client.NewOneOff(t.Context(), client.OneOffConfig{Trust: trust, Gateway: config.Gateway, CA: config.CA, Whole: whole})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	return o
}

// once sends one request and returns status and content.
func once(t *testing.T, o *client.OneOff, method, key string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, scoringURL+"/", strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	answer, err := o.RoundTrip(r)
	if err != nil {
		t.Fatalf("%s %s: %v", method, key, err)
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(b)
}

// TestOneOffs: without a session, any unit serves safe requests. A client that follows the
// task continues over an upgrade with the keys it has; a client that is pinned to code does
// not. POST requests with an Idempotency-Key are served only if the policy allows them.
func TestOneOffs(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	asked := map[string]int{}
	count := func(method string) int { mu.Lock(); defer mu.Unlock(); return asked[method] }
	release := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			defer mu.Unlock()
			asked[r.Method]++
			io.WriteString(w, name)
		})
	}
	c := New(t, scoring(time.Hour))
	c.StartManager()
	var units []*Replica
	for _, name := range []string{"a", "b"} {
		units = append(units, c.Start("scoring", "scoring 1", release(name)))
	}
	attended(t, units...)
	pins := c.TrustConfig("")
	pins.ID = trust(t, c).Identities()[0].ID
	pinned, err := client.FetchTrust(t.Context(), pins)
	if err != nil {
		t.Fatal(err)
	}
	follow, strict := oneOff(t, c, trust(t, c), false), oneOff(t, c, pinned, true)
	seen := map[string]bool{}
	for range 30 {
		_, a := once(t, follow, http.MethodGet, "")
		_, b := once(t, strict, http.MethodGet, "")
		seen[a], seen[b] = true, true
	}
	if len(seen) != 2 || count(http.MethodGet) != 60 {
		t.Errorf("answered by %v, asked %d times", seen, count(http.MethodGet))
	}
	if status, _ := once(t, follow, http.MethodPost, "1"); status != http.StatusForbidden {
		t.Errorf("marked without policy: got %d", status)
	}
	r, _ := http.NewRequest(http.MethodPost, scoringURL, nil)
	if _, err := follow.RoundTrip(r); !errors.Is(err, wire.NotAllowed) {
		t.Errorf("neither safe nor marked: got %v", err)
	}

	first := "[task.scoring.release.\"1\"]\n"
	next := "[task.scoring.release.\"2\"]\nreference = [ " + Reference("scoring 2") + " ]\ncontinues = \"1\"\noneoff = true\n"
	push(t, c, c.NextPolicy(first, next+first))
	heir := c.Start("scoring", "scoring 2", release("heir"))
	attended(t, heir)
	for _, u := range units {
		u.Stop()
	}
	keys, _, _ := follow.SignedKeys()
	if status, name := once(t, follow, http.MethodGet, ""); status != http.StatusOK || name != "heir" {
		t.Errorf("after the upgrade: got %d by %q", status, name)
	}
	if status, _ := once(t, follow, http.MethodPost, "1"); status != http.StatusOK || count(http.MethodPost) != 1 {
		t.Errorf("marked, as policy says: got %d, asked %d times", status, count(http.MethodPost))
	}
	if now, _, _ := follow.SignedKeys(); string(now) != string(keys) {
		t.Error("other keys were needed")
	}
	r, _ = http.NewRequestWithContext(t.Context(), http.MethodGet, scoringURL, nil)
	if _, err := strict.RoundTrip(r); err == nil {
		t.Error("code that is not pinned answers")
	}
}
