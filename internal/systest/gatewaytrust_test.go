package systest

import (
	"fmt"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// TestTrustThroughGateway: a client that knows the gateway alone opens a session, follows a step
// that cuts a unit off, and trusts anew at once. While the authority is away, the gateway's copy
// serves further clients, and one that demands fresh evidence learns why it gets none.
func TestTrustThroughGateway(t *testing.T) {
	c := New(t, Task{Name: "scoring", KeyMode: policyfile.PerUnit, Life: time.Hour, Programs: []string{"scoring 1"}})
	c.StartManager()
	twin, honest := c.Start("scoring", "scoring 1", hello(twinName)), c.Start("scoring", "scoring 1", hello("honest"))
	attended(t, twin, honest)
	pins := c.TrustConfig("scoring")
	pins.Authorities, pins.Gateways, pins.GatewayCA = nil, []string{"https://" + c.manager.listen}, c.manager.ca
	open := func() *client.Channel {
		t.Helper()
		trust, err := client.FetchTrust(t.Context(), pins)
		if err != nil {
			t.Fatal(err)
		}
		return c.OpenChannel(client.OpenConfig{Trust: trust, Gateway: pins.Gateways[0], CA: pins.GatewayCA})
	}
	ch := open()
	if got, err := fetched(t.Context(), ch, scoringURL); err != nil || got != twinName && got != "honest" {
		t.Fatalf("got %q, %v", got, err)
	}
	before := c.Approved().PolicyHead()
	c.Adopt("[task.scoring]\n", fmt.Sprintf("[task.scoring]\ncut_units = [%q]\n", twin.Unit.ID()))
	head := c.Approved().PolicyHead()
	testworld.Within(t, 10*time.Second, "the gateway to have the step", func() bool { return c.gatewayHead(before) == head })
	testworld.Within(t, 10*time.Second, "the client to have the step", func() bool { return ch.Trust().Policy().PolicyHead() == head })
	if got := open().Trust().Policy().PolicyHead(); got != head {
		t.Errorf("a new client: got head %v, want %v", got, head)
	}
	for i := range 20 {
		if got, err := fetched(t.Context(), ch, scoringURL); err != nil || got != "honest" {
			t.Errorf("request %d: got %q, %v, want a response of the unit that stays", i, got, err)
		}
	}
	if _, err := client.FetchTrust(t.Context(), pins); err != nil { // so that the gateway keeps a response under the step
		t.Error(err)
	}
	c.KillAuthority()
	open()
	pins.Fresh = true
	_, err := client.FetchTrust(t.Context(), pins)
	testworld.Refused(t, err, wire.Unavailable)
}
