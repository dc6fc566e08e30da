package opscmd

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
)

// LogCommand is `cohort log`.
func LogCommand(a *frame.App) *cobra.Command {
	var l logFlags
	cmd, _ := authorityclient.Command(a, "log", "Print what the authority issued and refused, newest first", cobra.NoArgs,
		func(ctx context.Context, c authorityclient.Client, _ *authorityclient.Flags, _ []string) error {
			entries, err := l.readEntries(ctx, c, a.Now())
			if err != nil {
				return err
			}
			var b strings.Builder
			for _, e := range entries {
				b.WriteString(logLine(e) + "\n")
			}
			return a.PrintResult("log", map[string]any{"entries": entries}, b.String())
		})
	flags := cmd.Flags()
	flags.StringVar(&l.query.Unit, "unit", "", "only of this unit id")
	flags.StringVar(&l.query.Task, "task", "", "only of this task")
	flags.DurationVar(&l.since, "since", 0, "only of this long ago and newer")
	flags.IntVar(&l.limit, "limit", 100, "at most this many")
	return cmd
}

// logFlags select entries.
type logFlags struct {
	query api.LogQuery
	since time.Duration // 0 is for ever
	limit int
}

// readEntries reads pages until enough entries are there, or they are too old.
func (l logFlags) readEntries(ctx context.Context, c authorityclient.Client, now time.Time) ([]api.LogEntry, error) {
	entries := []api.LogEntry{}
	for q := l.query; ; {
		page, err := c.IssuanceLog(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, e := range page.Entries {
			if len(entries) == l.limit || l.since > 0 && e.Time.Before(now.Add(-l.since)) {
				return entries, nil
			}
			entries = append(entries, e)
		}
		if page.Next == 0 {
			return entries, nil
		}
		q.Before = page.Next
	}
}
