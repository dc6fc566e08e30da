package systest

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// TestTrustThroughGateway: a client that reaches a manager's gateway alone trusts the authority
// behind it, with evidence that clients share and with its own. What the gateway keeps serves
// further clients while the authority is away; evidence for one client's nonce is not kept.
func TestTrustThroughGateway(t *testing.T) {
	c := New(t, scoring(time.Hour))
	c.StartManager()
	pins := c.TrustConfig("scoring")
	pins.Authorities, pins.Gateways, pins.GatewayCA = nil, []string{"https://" + c.manager.listen}, c.manager.ca
	fresh := pins
	fresh.Fresh = true
	for name, p := range map[string]client.TrustConfig{"shared": pins, "fresh": fresh} {
		var trust *client.Trust
		testworld.Within(t, 10*time.Second, "the gateway has the history", func() bool {
			var err error
			trust, err = client.FetchTrust(t.Context(), p)
			return err == nil
		})
		if len(trust.Identities()) != 1 {
			t.Errorf("%s: got %d identities, want 1", name, len(trust.Identities()))
		}
	}
	c.StopAuthority()
	if _, err := client.FetchTrust(t.Context(), pins); err != nil {
		t.Errorf("while the authority is away: %v", err)
	}
	if _, err := client.FetchTrust(t.Context(), fresh); err == nil {
		t.Error("fresh evidence while the authority is away")
	}
}
