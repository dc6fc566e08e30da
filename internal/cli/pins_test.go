package cli

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/cli/frame"
)

// TestWaysToTrust: a client without an authority and a gateway learns what is missing, and one
// whose authority or gateway is away what to give.
func TestWaysToTrust(t *testing.T) {
	const genesis = "1111111111111111111111111111111111111111111111111111111111111111"
	pins := []string{"--genesis", genesis, "--task", "scoring", "--state", filepath.Join(t.TempDir(), "seen.json")}
	if got := run(t, nil, append([]string{"trust"}, pins...)...); got.exit != frame.ExitUsage || !strings.Contains(got.talk, "--authority") || !strings.Contains(got.talk, "--gateway") {
		t.Errorf("without any: got %+v, want exit %d", got, frame.ExitUsage)
	}
	// An empty variable is no authority.
	empty := map[string]string{"COHORT_AUTHORITY": ""}
	if got := run(t, empty, append([]string{"trust"}, pins...)...); got.exit != frame.ExitUsage || !strings.Contains(got.talk, "give --authority, or --gateway") {
		t.Errorf("with an empty variable: got %+v, want exit %d", got, frame.ExitUsage)
	}
	if got := run(t, empty, append([]string{"verify", "127.0.0.1:1", "--gateway", "https://127.0.0.1:1"}, pins...)...); got.exit != frame.ExitUnreachable {
		t.Errorf("with an empty variable and a gateway: got %+v, want exit %d", got, frame.ExitUnreachable)
	}
	for _, way := range [][]string{
		{"request", "https://scoring.test/", "--session", "--gateway", "https://127.0.0.1:1"},
		{"request", "https://127.0.0.1:1/", "--session"},
		{"request", "https://scoring.test/", "--authority", "https://127.0.0.1:1"},
		{"request", "https://scoring.test/", "--gateway", "https://127.0.0.1:1"},
		{"trust", "--gateway", "https://127.0.0.1:1,https://127.0.0.1:2", "--fresh-trust"},
		{"verify", "127.0.0.1:1", "--gateway", "https://127.0.0.1:1"},
		{"verify", "https://127.0.0.1:1", "--session"},
	} {
		if got := run(t, nil, append(way, pins...)...); got.exit != frame.ExitUnreachable || !strings.Contains(got.talk, "\nhint: ") || !strings.Contains(got.talk, "--authority") {
			t.Errorf("%q: got %+v, want exit %d with a hint", way, got, frame.ExitUnreachable)
		}
	}
}
