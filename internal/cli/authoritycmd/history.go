package authoritycmd

import (
	"encoding/json"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/wire"
)

// readHistory reads a policy history to show to an authority: the file that `authority
// backup` writes, or the state file of a client. Nothing in it is checked here.
func readHistory(path string) ([]api.HistoryEntry, error) {
	if path == "" {
		return nil, nil
	}
	b, err := frame.ReadFile(path, 4*wire.MaxResponse)
	if err != nil {
		return nil, fmt.Errorf("reading --history: %w", err)
	}
	var file struct {
		Schema  string             `json:"schema"`
		From    int                `json:"from"`
		Entries []api.HistoryEntry `json:"entries"`
		Steps   []api.HistoryEntry `json:"steps"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("reading --history: %w", err)
	}
	switch {
	case file.Schema == "cohort/history/v1" && file.From == 0:
		return file.Entries, nil
	case file.Schema == client.StateSchema:
		return file.Steps, nil
	}
	return nil, wire.Refuse(wire.Malformed, "history: schema", file.Schema, "cohort/history/v1 from its beginning, or "+client.StateSchema)
}

// built is when this program was made: the time of the revision it was built from, zero where
// the build carries none.
func built() time.Time {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return time.Time{}
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.time" {
			at, _ := time.Parse(time.RFC3339, s.Value)
			return at
		}
	}
	return time.Time{}
}
