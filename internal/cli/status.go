package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

// statusView is what an authority says of itself and its units, under the policy
// that was checked.
type statusView struct {
	Policy    policyView     `json:"policy"`
	Head      string         `json:"head"`
	Proposals []api.Proposal `json:"proposals"`
	Recent    []api.LogEntry `json:"recent"`
	Renewals  renewalView    `json:"renewals"`
	Backup    api.Backup     `json:"backup"`
	Manager   string         `json:"manager,omitempty"`
	Health    api.Health     `json:"health"`
	filling
}

// filling are the warnings of a history that is nearly full.
type filling struct {
	Warnings []string `json:"warnings,omitempty"`
}

func fillingOf(p policy.Approved) (f filling) {
	for _, w := range p.Filling() {
		f.Warnings = append(f.Warnings, w.String())
	}
	return f
}

// String is one line for each warning.
func (f filling) String() string {
	var b strings.Builder
	for _, w := range f.Warnings {
		fmt.Fprintf(&b, "WARNING: %s\n", w)
	}
	return b.String()
}

// healthOf is what the authority's probe reports, a refusal included.
func healthOf(ctx context.Context, c authorityClient) api.Health {
	h, err := c.Ready(ctx)
	if err != nil {
		return api.Health{Status: oneLine(err.Error())}
	}
	return h
}

func (a *app) statusCommand() *cobra.Command {
	var g gatewayFlags
	cmd, _ := a.remote("status", "Show the policy in force, how far units have come under it, the backup of the root, what waits, and recent issuances", cobra.NoArgs,
		func(ctx context.Context, c authorityClient, _ *remoteFlags, _ []string) error {
			all, err := c.Proposals(ctx)
			if err != nil {
				return err
			}
			log, err := c.IssuanceLog(ctx, api.LogQuery{Limit: 10})
			if err != nil {
				return err
			}
			units, err := a.live(ctx, c)
			if err != nil {
				return err
			}
			kept, err := c.Backup(ctx)
			if err != nil {
				return err
			}
			v := statusView{Renewals: renewals(units, c.policy.Head()), Backup: kept, Policy: describe(c.policy.Document()), Head: c.policy.Head().String(), Proposals: all.Proposals, Recent: log.Entries, Health: healthOf(ctx, c), filling: fillingOf(c.policy)}
			if v.Manager, err = lookGateway(ctx, g); err != nil && !errors.Is(err, errSkipped) {
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
	b.WriteString(v.filling.String())
	fmt.Fprintf(&b, "authority %s\n", v.Health.Status)
	for _, w := range v.Health.Warnings {
		fmt.Fprintf(&b, "          WARNING: %s\n", w)
	}
	for _, c := range v.Health.Contradictions {
		fmt.Fprintf(&b, "          WARNING: head %s is in force, and %s took effect in its place, seen %s\n", c.Kept, c.Other, rfc3339(c.Seen))
	}
	b.WriteString("rollback  detected only: by rows of the authority's own, and by units and clients that have seen newer policy\n")
	fmt.Fprintf(&b, "units     %s\n", v.Renewals)
	fmt.Fprintf(&b, "backup    %s\n", backupText(v.Backup))
	b.WriteString("root      a quorum of the owners of any policy so far can rebuild it, from their shares or the store of that day: stolen keys need another root\n")
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

// backupText says what backup of the root there is.
func backupText(b api.Backup) string {
	switch {
	case b.State == api.BackupCurrent && b.Created != nil:
		return b.ID + " of " + rfc3339(*b.Created)
	case b.State == api.BackupStale && b.Created != nil:
		return "WARNING: " + b.ID + " of " + rfc3339(*b.Created) + " is for other owners than today's; make a new one with `cohort authority backup`"
	}
	return "WARNING: none; if this authority's machine is lost, so is its root. Make one with `cohort authority backup`"
}

// withDevice is one device beside a TEE for people, with what nobody compared of it.
func withDevice(platform, chip string, unjudged []string) string {
	text := " with " + platform + " " + chip
	if len(unjudged) > 0 {
		text += " (not judged: " + strings.Join(unjudged, "; ") + ")"
	}
	return text
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
	for _, d := range e.Devices {
		line += withDevice(d.Platform, d.Chip, d.Unjudged)
	}
	if e.Reason != "" {
		line += fmt.Sprintf(" [%s] %s", e.Reason, e.Detail)
	}
	return line
}
