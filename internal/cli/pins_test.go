package cli

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/cli/frame"
)

// TestTrustBeginsAtAnAuthority: a client with a gateway alone learns what is missing.
func TestTrustBeginsAtAnAuthority(t *testing.T) {
	const begins = "trust begins with evidence of an authority, and no gateway replaces one"
	args := []string{"request", "https://scoring.test/", "--session", "--gateway", "https://127.0.0.1:1", "--genesis", strings.Repeat("1", 64), "--task", "scoring", "--state", filepath.Join(t.TempDir(), "seen.json")}
	if got := run(t, nil, args...); got.exit != frame.ExitUsage || !strings.Contains(got.talk, begins) {
		t.Errorf("without an authority: got %+v, want exit %d and %q", got, frame.ExitUsage, begins)
	}
	args = append(args, "--authority", "https://127.0.0.1:1")
	if got := run(t, nil, args...); got.exit != frame.ExitUnreachable || !strings.Contains(got.talk, "\nhint: ") || !strings.Contains(got.talk, begins) {
		t.Errorf("with one that is away: got %+v, want exit %d and %q", got, frame.ExitUnreachable, begins)
	}
}
