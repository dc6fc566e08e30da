package policycmd

import (
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/api"
)

// TestProposalText: a proposal that waits shows how much of its delay has passed.
func TestProposalText(t *testing.T) {
	text := ProposalText(api.Proposal{State: "waiting", Waited: 1800, Delay: 86400})
	if !strings.Contains(text, "waited 30m0s of 24h0m0s") {
		t.Errorf("got %q, want the time waited and the delay", text)
	}
}
