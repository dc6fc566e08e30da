package cli

import (
	"context"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/spf13/cobra"
)

func (a *app) logCommand() *cobra.Command {
	var q api.LogQuery
	var since time.Duration
	var limit int
	cmd, _ := a.remote("log", "Print what the authority issued and refused, newest first", cobra.NoArgs,
		func(ctx context.Context, c authorityClient, _ *remoteFlags, _ []string) error {
			var begin time.Time
			if since > 0 {
				begin = a.now().Add(-since)
			}
			entries, err := readLog(ctx, c, q, begin, limit)
			if err != nil {
				return err
			}
			var b strings.Builder
			for _, e := range entries {
				b.WriteString(logLine(e) + "\n")
			}
			return a.emit("log", map[string]any{"entries": entries}, b.String())
		})
	flags := cmd.Flags()
	flags.StringVar(&q.Unit, "unit", "", "only of this unit id")
	flags.StringVar(&q.Task, "task", "", "only of this task")
	flags.DurationVar(&since, "since", 0, "only of this long ago and newer")
	flags.IntVar(&limit, "limit", 100, "at most this many")
	return cmd
}

// readLog reads pages until limit entries are there, or they are older than
// since.
func readLog(ctx context.Context, c authorityClient, q api.LogQuery, since time.Time, limit int) ([]api.LogEntry, error) {
	entries := []api.LogEntry{}
	for {
		page, err := c.Log(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, e := range page.Entries {
			if len(entries) == limit || e.Time.Before(since) {
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
