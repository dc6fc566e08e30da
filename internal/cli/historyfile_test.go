package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestReadHistory reads the files that a policy history is kept in, and no others.
func TestReadHistory(t *testing.T) {
	for name, row := range map[string]struct {
		text string
		want int         // entries
		no   wire.Reason // or this
	}{
		"of a backup":        {`{"schema":"cohort/history/v1","from":0,"entries":[{"policy":"YQ==","signatures":["s"],"adopted_at":"2026-11-22T12:00:00Z"}],"head":""}`, 1, ""},
		"of a client":        {`{"schema":"cohort/client-state/v1","genesis":"","head":"","sequence":2,"steps":[{"policy":"YQ==","signatures":[]},{"policy":"Yg==","signatures":[]}]}`, 2, ""},
		"not from the start": {`{"schema":"cohort/history/v1","from":3,"entries":[]}`, 0, wire.Malformed},
		"something else":     {`{"schema":"cohort/policy-status/v1"}`, 0, wire.Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "history.json")
			if err := os.WriteFile(path, []byte(row.text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readHistory(path)
			if row.no != "" {
				if wire.ReasonOf(err) != row.no || err == nil {
					t.Errorf("got %v, want a refusal [%s]", err, row.no)
				}
				return
			}
			if err != nil || len(got) != row.want || string(got[0].Policy) != "a" {
				t.Errorf("got %+v, %v, want %d entries", got, err, row.want)
			}
		})
	}
	if got, err := readHistory(""); got != nil || err != nil {
		t.Errorf("got %v, %v of no file", got, err)
	}
}

// TestStatusWarns: what is wrong with the authority's store stands in `status`, with both heads.
func TestStatusWarns(t *testing.T) {
	kept, other := wire.Sum([]byte("kept")), wire.Sum([]byte("other"))
	text := statusView{Health: api.Health{Status: "ready", Warnings: []string{"damaged rows"}, Contradictions: []api.Contradiction{{Kept: kept, Other: other, Seen: time.Unix(0, 0)}}}}.String()
	for _, want := range []string{"authority ready", "WARNING: damaged rows", kept.String(), other.String()} {
		if !strings.Contains(text, want) {
			t.Errorf("got %q, want %q in it", text, want)
		}
	}
}

// TestProposalText: a proposal that waits shows how much of its delay has passed.
func TestProposalText(t *testing.T) {
	text := proposalText(api.Proposal{State: "waiting", Waited: 1800, Delay: 86400})
	if !strings.Contains(text, "waited 30m0s of 24h0m0s") {
		t.Errorf("got %q, want the time waited and the delay", text)
	}
}
