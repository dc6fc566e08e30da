// Package opscmd is what an operator runs: `cohort status`, `cohort log` and `cohort doctor`.
//
// Files, each using those before it: status.go, log.go, doctor.go.
package opscmd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/policycmd"
	"github.com/cohort-tee/cohort/internal/wire"
)

// renewalView counts how many units are under the policy in force: a change
// of policy is complete when none is left under an older one.
type renewalView struct {
	Renewed int        `json:"renewed"`
	Of      int        `json:"of"`
	Until   *time.Time `json:"until,omitempty"` // when the last certificate of an older policy ends
}

func renewals(units []api.LogEntry, head wire.Digest) renewalView {
	v := renewalView{Of: len(units)}
	for _, e := range units {
		if e.Head == head {
			v.Renewed++
		} else if v.Until == nil || e.NotAfter.After(*v.Until) {
			v.Until = &e.NotAfter
		}
	}
	return v
}

func (v renewalView) String() string {
	line := fmt.Sprintf("%d of %d units renewed under this policy", v.Renewed, v.Of)
	if v.Until != nil {
		line += "; the last certificate of an older one ends " + frame.RFC3339(*v.Until)
	}
	return line
}

// statusView is an authority's report of itself and its units, under the policy
// that was checked.
type statusView struct {
	Policy    policycmd.PolicyView `json:"policy"`
	Head      string               `json:"head"`
	Proposals []api.Proposal       `json:"proposals"`
	Recent    []api.LogEntry       `json:"recent"`
	Renewals  renewalView          `json:"renewals"`
	Backup    api.Backup           `json:"backup"`
	Manager   string               `json:"manager,omitempty"`
	Health    api.Health           `json:"health"`
	authorityclient.Filling
}

// healthOf is what the authority's probe reports, a refusal included.
func healthOf(ctx context.Context, c authorityclient.Client) api.Health {
	h, err := c.Ready(ctx)
	if err != nil {
		return api.Health{Status: frame.OneLine(err.Error())}
	}
	return h
}

// Status is `cohort status`.
func Status(a *frame.App) *cobra.Command {
	var g authorityclient.Gateway
	cmd, _ := authorityclient.Command(a, "status", "Show the policy in force, how far units have come under it, the backup of the root, pending proposals, and recent issuances", cobra.NoArgs,
		func(ctx context.Context, c authorityclient.Client, _ *authorityclient.Flags, _ []string) error {
			all, err := c.Proposals(ctx)
			if err != nil {
				return err
			}
			log, err := c.IssuanceLog(ctx, api.LogQuery{Limit: 10})
			if err != nil {
				return err
			}
			units, err := authorityclient.LiveUnits(ctx, a, c)
			if err != nil {
				return err
			}
			kept, err := c.Backup(ctx)
			if err != nil {
				return err
			}
			v := statusView{Renewals: renewals(units, c.Approved.PolicyHead()), Backup: kept, Policy: policycmd.Describe(c.Approved.Document()), Head: c.Approved.PolicyHead().String(), Proposals: all.Proposals, Recent: log.Entries, Health: healthOf(ctx, c), Filling: authorityclient.FillingOf(c.Approved)}
			if v.Manager, err = lookGateway(ctx, g); err != nil && !errors.Is(err, errSkipped) {
				v.Manager = "does not respond: " + frame.OneLine(err.Error())
			}
			return a.PrintResult("status", v, v.String())
		})
	g.Register(cmd, "URL of a manager's gateway, to show it too")
	return cmd
}

func (v statusView) String() string {
	var b strings.Builder
	b.WriteString(v.Policy.String())
	b.WriteString(v.Filling.String())
	fmt.Fprintf(&b, "authority %s\n", v.Health.Status)
	for _, w := range v.Health.Warnings {
		fmt.Fprintf(&b, "          WARNING: %s\n", w)
	}
	for _, c := range v.Health.Contradictions {
		fmt.Fprintf(&b, "          WARNING: head %s is in force, and %s took effect in its place, seen %s\n", c.Kept, c.Other, frame.RFC3339(c.Seen))
	}
	b.WriteString("rollback  detected only: by rows of the authority's own, and by units and clients that have seen newer policy\n")
	fmt.Fprintf(&b, "units     %s\n", v.Renewals)
	fmt.Fprintf(&b, "backup    %s\n", backupText(v.Backup))
	b.WriteString("root      a quorum of the owners of any policy so far can rebuild it, from their shares or the store of that day: stolen keys need another root\n")
	for _, p := range v.Proposals {
		b.WriteString(policycmd.ProposalText(p))
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

// backupText describes the newest backup of the root.
func backupText(b api.Backup) string {
	switch {
	case b.State == api.BackupCurrent && b.Created != nil:
		return b.ID + " of " + frame.RFC3339(*b.Created)
	case b.State == api.BackupStale && b.Created != nil:
		return "WARNING: " + b.ID + " of " + frame.RFC3339(*b.Created) + " is for other owners than today's; make a new one with `cohort authority backup`"
	}
	return "WARNING: none; if this authority's machine is lost, so is its root. Make one with `cohort authority backup`"
}

// logLine is one entry of the authority's log for people.
func logLine(e api.LogEntry) string {
	line := fmt.Sprintf("%s %-8s %s", frame.RFC3339(e.Time), e.Kind, e.Task)
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
		line += frame.WithDevice(d.Platform, d.Chip, d.Unjudged)
	}
	if e.Reason != "" {
		line += fmt.Sprintf(" [%s] %s", e.Reason, e.Detail)
	}
	return line
}

// lookGateway reports whether a manager relays, and how many units it has ready.
func lookGateway(ctx context.Context, g authorityclient.Gateway) (string, error) {
	if g.URL == "" {
		return "", errSkipped
	}
	units, err := g.Ready(ctx)
	return fmt.Sprintf("ready at %s, %d units", g.URL, units), err
}

// errSkipped is the error of a check that was asked nothing.
var errSkipped = errors.New("not asked for")
