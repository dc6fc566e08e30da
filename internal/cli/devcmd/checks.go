package devcmd

import (
	"context"
	"errors"

	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/dev/check/channelcheck"
	"github.com/cohort-tee/cohort/internal/dev/check/groupcheck"
	"github.com/cohort-tee/cohort/internal/dev/check/identitycheck"
)

// checks are the checks of a task, in their order: those that disturb the cluster come last.
var checks = []check.Case{
	{Name: "identity/one-certificate", Run: identitycheck.OneCertificate},
	{Name: "identity/tls13-only", Run: identitycheck.TLS13Only},
	{Name: "identity/no-tickets", Run: identitycheck.NoTickets},
	{Name: "identity/any-replica-with-one-root", Run: func(ctx context.Context, c check.Checker) (string, error) { return c.AnyReplica(ctx) }},
	{Name: "identity/wrong-root-refused", Run: identitycheck.WrongRootRefused},
	{Name: "identity/verify", Run: func(ctx context.Context, c check.Checker) (string, error) { return c.Verify(ctx) }},
	{Name: "identity/changed-program-refused", Run: identitycheck.ChangedProgramRefused},
	{Name: "identity/other-authority-refused", Run: identitycheck.OtherAuthorityRefused},
	{Name: "identity/rolled-back-store", Run: identitycheck.RolledBackStore},
	{Name: "identity/root-steal", Run: identitycheck.RootSteal},
	{Name: "identity/cut-unit", Run: identitycheck.CutUnit},
	{Name: "identity/cut-chip", Run: identitycheck.CutChip},
	{Name: "identity/cut-release", Run: identitycheck.CutRelease},
	{Name: "identity/cut-platform", Run: identitycheck.CutPlatform},
	{Name: "channel/receipt", Run: channelcheck.Receipt},
	{Name: "channel/altered-bytes-refused", Run: channelcheck.AlteredBytes},
	{Name: "channel/stream-cut-is-an-error", Run: channelcheck.StreamCut},
	{Name: "channel/one-off", Run: channelcheck.OneOff},
	{Name: "channel/once-and-in-time", Run: channelcheck.OnceInTime},
	{Name: "channel/every-number", Run: channelcheck.EveryNumber},
	{Name: "channel/hostile-manager", Run: channelcheck.HostileManager},
	{Name: "channel/one-session-any-unit", Run: channelcheck.OneSessionAnyUnit},
	{Name: "channel/rogue-tenant", Run: channelcheck.RogueTenant},
	{Name: "channel/manager-restart", Run: channelcheck.ManagerRestart},
	{Name: "channel/manager-wiped", Run: channelcheck.ManagerWiped},
	{Name: "identity/kill-and-restart", Run: identitycheck.KillAndRestart},
}

// checkRunning checks the running cluster that a file describes.
func checkRunning(ctx context.Context, a *frame.App, path string) error {
	c, err := dev.ReadCluster(path)
	if err != nil {
		return err
	}
	if c.Group != "" {
		return frame.Usage("--cluster: the checks of a group need a fresh cluster: cohort dev --check FILE")
	}
	live := func() dev.Description {
		if now, err := dev.ReadCluster(path); err == nil {
			return now
		}
		return c
	}
	return check.Checker{App: a, Cluster: c, Live: live}.Run(ctx, checks)
}

// checkStarted checks a cluster that was just started, and then replaces its program by so
// many releases.
func checkStarted(ctx context.Context, d *dev.Cluster, upgrades int) error {
	if d.Doc.Group != "" {
		return groupcheck.Run(ctx, d)
	}
	return errors.Join(check.ForCluster(d).Run(ctx, checks), channelcheck.Upgrades(ctx, d, upgrades))
}
