package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
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
	Manager   string         `json:"manager,omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	var g gatewayFlags
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
			v := statusView{Policy: describe(c.policy.Document()), Head: c.policy.Head().String(), Proposals: all.Proposals, Recent: log.Entries}
			if v.Manager, err = g.look(ctx); err != nil && !errors.Is(err, errSkipped) {
				v.Manager = "does not answer: " + oneLine(err.Error())
			}
			return a.emit("status", v, v.String())
		})
	g.register(cmd, "URL of a manager's gateway, to show it too")
	return cmd
}

func (v statusView) String() string {
	var b strings.Builder
	b.WriteString(v.Policy.String())
	for _, p := range v.Proposals {
		b.WriteString(proposalText(p))
	}
	if v.Manager != "" {
		fmt.Fprintf(&b, "manager   %s\n", v.Manager)
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
		if e.Platform == string(attest.TPM) {
			line += " (a TPM: no debug state)"
		}
	}
	if e.Reason != "" {
		line += fmt.Sprintf(" [%s] %s", e.Reason, e.Detail)
	}
	return line
}
