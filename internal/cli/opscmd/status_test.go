package opscmd

import (
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestLogOfDevices: the log shows which GPUs a unit had, and what was not compared.
func TestLogOfDevices(t *testing.T) {
	got := logLine(api.LogEntry{Kind: "issued", Task: "train", Platform: "snp", Chip: "c", Devices: []api.LogDevice{{Platform: "nvidia-gpu", Chip: "d", Unjudged: []string{"x", "y"}}}})
	if want := " on snp c with nvidia-gpu d (not verified: x; y)"; !strings.HasSuffix(got, want) {
		t.Errorf("got %q, want it to end in %q", got, want)
	}
}

// TestStatusWarns: what is wrong with the authority's store is in `status`, with both heads.
func TestStatusWarns(t *testing.T) {
	kept, other := wire.Sum([]byte("kept")), wire.Sum([]byte("other"))
	text := statusView{Health: api.Health{Status: "ready", Warnings: []string{"damaged rows"}, Contradictions: []api.Contradiction{{Kept: kept, Other: other, Seen: time.Unix(0, 0)}}}}.String()
	for _, want := range []string{"authority ready", "WARNING: damaged rows", kept.String(), other.String()} {
		if !strings.Contains(text, want) {
			t.Errorf("got %q, want %q in it", text, want)
		}
	}
}

// TestRenewals counts who has come under the policy in force, and until when the
// others last.
func TestRenewals(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	old, head := wire.Sum([]byte("old")), wire.Sum([]byte("head"))
	units := []api.LogEntry{{Head: head, NotAfter: at.Add(time.Hour)}, {Head: old, NotAfter: at.Add(time.Minute)}, {Head: old, NotAfter: at.Add(2 * time.Minute)}}
	got := renewals(units, head)
	if got.Renewed != 1 || got.Of != 3 || got.Until == nil || !got.Until.Equal(at.Add(2*time.Minute)) {
		t.Errorf("got %+v, want 1 of 3 until 2 minutes later", got)
	}
	if got := renewals(units[:1], head); got.Renewed != 1 || got.Of != 1 || got.Until != nil {
		t.Errorf("got %+v, want 1 of 1 and no time", got)
	}
}

// TestNearlyFull: a history that is nearly full is warned of in a line of its own, and as
// a list for programs.
func TestNearlyFull(t *testing.T) {
	const sentence = "history: 8001 of 10000 steps"
	f := authorityclient.Filling{Warnings: []string{sentence}}
	if got := (statusView{Filling: f}).String(); !strings.Contains(got, "\nWARNING: "+sentence+"\n") {
		t.Errorf("status has no warning:\n%s", got)
	}
	b, err := frame.WithSchema("status", statusView{Filling: f})
	if want := "\"warnings\": [\n    \"" + sentence; err != nil || !strings.Contains(string(b), want) {
		t.Errorf("got %s, %v, want %s", b, err, want)
	}
}
