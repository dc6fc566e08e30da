package authorityclient

import (
	"context"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/wire"
)

// logPageSize is how many entries of the log are asked for at once.
const logPageSize = 1000

// LiveUnits are the newest issuances of units whose certificates have not ended, as
// the authority's log has them, newest first.
func LiveUnits(ctx context.Context, a *frame.App, c Client) ([]api.LogEntry, error) {
	now, seen := a.Now(), map[string]bool{}
	var out []api.LogEntry
	for q := (api.LogQuery{Limit: logPageSize}); ; {
		page, err := c.IssuanceLog(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, e := range page.Entries {
			if e.Kind != "issued" {
				continue
			}
			if e.Time.Before(now.Add(-wire.MaxLifetime)) {
				return out, nil // no certificate is valid for longer
			}
			if !seen[e.Unit] && now.Before(e.NotAfter) {
				out = append(out, e)
			}
			seen[e.Unit] = true
		}
		if q.Before = page.Next; q.Before == 0 {
			return out, nil
		}
	}
}
