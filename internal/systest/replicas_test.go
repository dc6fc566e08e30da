package systest

import (
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/unit"
)

// TestAuthorityReplicas: two authorities run on one store, and the one that issues ring
// keys ends. Units switch to the other without intervention; clients use either.
func TestAuthorityReplicas(t *testing.T) {
	c := New(t, scoring(time.Hour))
	first := c.Start("scoring", "scoring 1", http.NotFoundHandler())
	second, stop := c.StartReplica()
	start := func(authorities ...string) *unit.Unit {
		t.Helper()
		config := c.UnitConfig("scoring", "scoring 1")
		config.Authorities = authorities
		u, err := unit.Start(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(u.Close)
		return u
	}
	if got := start(second, c.URL()).Stats(); got.LastFailure != "ring-elsewhere" {
		t.Errorf("got last failure %q of a unit that asked the other first, want ring-elsewhere", got.LastFailure)
	}
	trust := c.TrustConfig("scoring")
	trust.Authorities = []string{second}
	if _, err := client.FetchTrust(t.Context(), trust); err != nil {
		t.Errorf("trusting by way of the other: %v", err)
	}
	c.StopAuthority()
	u := start(c.URL(), second)
	if u.Identity().ID != first.Unit.Identity().ID {
		t.Error("got another identity from the other authority")
	}
	stop()
}
