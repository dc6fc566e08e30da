package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/spf13/cobra"
)

// statusView is what an authority says of itself and its units, under the policy
// that was checked.
type statusView struct {
	Policy    policyView     `json:"policy"`
	Head      string         `json:"head"`
	Proposals []api.Proposal `json:"proposals"`
	Recent    []api.LogEntry `json:"recent"`
}

func (a *app) statusCommand() *cobra.Command {
	cmd, _ := a.remote("status", "Show the policy in force, what waits, and recent issuances", cobra.NoArgs,
		func(ctx context.Context, c authorityClient, _ *remoteFlags, _ []string) error {
			all, err := c.Proposals(ctx)
			if err != nil {
				return err
			}
			log, err := c.Log(ctx, api.LogQuery{Limit: 10})
			if err != nil {
				return err
			}
			v := statusView{describe(c.policy.Document()), c.policy.Head().String(), all.Proposals, log.Entries}
			return a.emit("status", v, v.String())
		})
	return cmd
}

func (v statusView) String() string {
	var b strings.Builder
	b.WriteString(v.Policy.String())
	for _, p := range v.Proposals {
		b.WriteString(proposalText(p))
	}
	if len(v.Recent) > 0 {
		b.WriteString("recent\n")
	}
	for _, e := range v.Recent {
		fmt.Fprintf(&b, "  %s\n", logLine(e))
	}
	return b.String()
}

// logLine is one entry of the authority's log for people.
func logLine(e api.LogEntry) string {
	line := fmt.Sprintf("%s %-8s %s", rfc3339(e.Time), e.Kind, e.Task)
	if e.Release != "" {
		line += " release " + e.Release
	}
	if e.Unit != "" {
		line += " unit " + e.Unit
	}
	if e.Platform != "" {
		line += " on " + e.Platform + " " + e.Chip
	}
	if e.Reason != "" {
		line += fmt.Sprintf(" [%s] %s", e.Reason, e.Detail)
	}
	return line
}
