package authoritycmd

import (
	"os"
	"path/filepath"
	"testing"

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
