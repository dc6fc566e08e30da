package systest

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// TestCutHeardAtGateway: a client starts with the policy from before a cut, while no
// authority is running. It gets the history from the gateway, refuses the unit that is cut
// off although that unit still serves, and uses the other unit. A client without an earlier
// trust response cannot start.
func TestCutHeardAtGateway(t *testing.T) {
	c := New(t, Task{Name: "scoring", KeyMode: policyfile.PerUnit, Life: time.Hour, Programs: []string{"scoring 1"}})
	c.StartManager()
	link := newLink(t, c.addr)
	config := c.UnitConfig("scoring", "scoring 1")
	config.Authorities = []string{"https://" + link.address}
	twin, honest := c.StartWith(config, hello(twinName)), c.Start("scoring", "scoring 1", hello("honest"))
	attended(t, twin, honest)
	early := c.OpenConfig("scoring")
	seen := fetchedAt(t, c, early)
	if !seen[twinName] || !seen["honest"] {
		t.Fatalf("before the cut: got responses of %v, want both units", seen)
	}

	link.parted.Lock() // from here on no policy reaches the twin
	defer link.parted.Unlock()
	before := c.Approved().PolicyHead()
	c.Adopt("[task.scoring]\n", fmt.Sprintf("[task.scoring]\ncut_units = [%q]\n", twin.Unit.ID()))
	head := c.Approved().PolicyHead()
	testworld.Within(t, 10*time.Second, "the gateway to have the step", func() bool { return c.gatewayHead(before) == head })
	c.KillAuthority()

	if early.Trust.Policy().PolicyHead() != before {
		t.Fatal("the client's trust is not that of before the cut")
	}
	ch := c.OpenChannel(early)
	testworld.Within(t, 10*time.Second, "the client to have the step from the gateway", func() bool { return ch.Trust().Policy().PolicyHead() == head })
	for i := range 40 {
		if got, err := fetched(t.Context(), ch, scoringURL); err != nil || got != "honest" {
			t.Errorf("request %d: got %q, %v, want a response of the unit that stays", i, got, err)
		}
	}
	if err := twin.Unit.Ready(); err != nil {
		t.Errorf("the unit that was cut off has stopped by itself: %v", err)
	}
	if _, err := client.FetchTrust(t.Context(), c.TrustConfig("scoring")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("trust without an authority: got %v, want %v", err, syscall.ECONNREFUSED)
	}
}

// fetchedAt returns the names of the units that respond to clients with a configuration.
func fetchedAt(t *testing.T, c *Cluster, config client.OpenConfig) map[string]bool {
	t.Helper()
	seen := map[string]bool{}
	for end := time.Now().Add(10 * time.Second); len(seen) < 2 && time.Now().Before(end); {
		ch := testworld.Must(client.Open(t.Context(), config))
		if got, err := fetched(t.Context(), ch, scoringURL); err == nil {
			seen[got] = true
		}
		ch.Close(t.Context())
	}
	return seen
}

// gatewayHead returns the newest head of the gateway's history, which it requests from the
// given head on.
func (c *Cluster) gatewayHead(after wire.Digest) wire.Digest {
	c.t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.manager.ca}}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport}).Get("https://" + c.manager.listen + wire.PathHistory + "?wait=0s&from=" + after.Hex())
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	var h api.History
	if err := json.NewDecoder(response.Body).Decode(&h); err != nil {
		c.t.Fatal(err)
	}
	return h.Head
}
