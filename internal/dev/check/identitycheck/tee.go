package identitycheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ChangedProgramRefused checks that a program with one more byte is refused and never ready,
// that the log names the measurements got and want, and that the other units continue.
func ChangedProgramRefused(ctx context.Context, c check.Checker) (string, error) {
	dir, err := os.MkdirTemp("", "cohort-changed-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	changed, err := check.AppendByte(c.Cluster.Program[0], dir)
	if err != nil {
		return "", err
	}
	m, err := localtee.Measure(c.Cluster.Agent, append([]string{changed}, c.Cluster.Program[1:]...))
	if err != nil {
		return "", err
	}
	u, err := c.NewUnit(dir, c.Cluster.Authority, []string{changed})
	if err != nil {
		return "", err
	}
	if err := u.MustBeRefused(ctx, c.Cluster.TEE, wire.NotMeasured); err != nil {
		return "", err
	}
	if err := refusalLogged(ctx, c, m.Program); err != nil {
		return "", err
	}
	_, err = c.AnyReplica(ctx)
	return "refused [measurement] got " + m.Program[:15] + "…, never ready, others go on", err
}

// refusalLogged returns an error unless the authority's log has a refusal with the measurement
// got and one that policy accepts.
func refusalLogged(ctx context.Context, c check.Checker, got string) error {
	a, err := authorityclient.Dial(ctx, c.App, c.ClientPins())
	if err != nil {
		return err
	}
	defer a.Close()
	log, err := a.IssuanceLog(ctx, api.LogQuery{Limit: 20})
	if err != nil {
		return err
	}
	original, err := check.FileDigest(c.Cluster.Program[0])
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(log.Entries, func(e api.LogEntry) bool {
		return e.Kind == "refused" && e.Reason == wire.NotMeasured && strings.Contains(e.Detail, got) && strings.Contains(e.Detail, original.String())
	}) {
		return fmt.Errorf("the authority's log has no refusal that names got %s and want %s", got, original)
	}
	return nil
}

// OtherAuthorityRefused checks an authority with the same code and a different root secret.
// Under this cluster's policy it must refuse to start. Under a policy of its own, a client and a
// unit with this cluster's genesis digest must refuse it.
func OtherAuthorityRefused(ctx context.Context, c check.Checker) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-other-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	other, err := otherCluster(ctx, c, dir)
	if err != nil {
		return "", err
	}
	ctx, other.Cancel = context.WithCancel(ctx)
	defer func() { err = errors.Join(err, other.Stop()) }()
	if err := other.InitAuthority(ctx); err != nil {
		return "", err
	}
	if err := refusesOurPolicy(ctx, c, other); err != nil {
		return "", fmt.Errorf("another root under this policy: %w", err)
	}
	if err := other.SignGenesis(ctx); err != nil {
		return "", err
	}
	if err := other.StartAuthority(ctx); err != nil {
		return "", err
	}
	fooled := c
	fooled.Cluster.Authority = other.Doc.Authority
	if _, err := fooled.Trust(ctx); !errors.Is(err, wire.WrongGenesis) {
		return "", fmt.Errorf("client at another authority: got %v, want a refusal [%s]", err, wire.WrongGenesis)
	}
	u, err := c.NewUnit(dir, other.Doc.Authority, c.Cluster.Program[:1:1])
	if err != nil {
		return "", err
	}
	if err := u.MustBeRefused(ctx, c.Cluster.TEE, wire.WrongGenesis); err != nil {
		return "", fmt.Errorf("unit at another authority: %w", err)
	}
	return "refuses to start under this policy [draft]; client and unit refuse it [genesis]", nil
}

// otherCluster returns a second authority in the same TEE, not yet started.
func otherCluster(ctx context.Context, c check.Checker, dir string) (cluster, error) {
	t, err := c.Trust(ctx)
	if err != nil {
		return cluster{}, err
	}
	roots := t.Policy().Document().Platforms[attest.Soft].Roots
	if len(roots) == 0 {
		return cluster{}, errors.New("the policy names no soft root")
	}
	b := dev.Binaries{Cohort: c.Cluster.Agent, Program: c.Cluster.Program}
	d, err := dev.New(c.App, dev.Flags{Task: c.Cluster.Task, KeyMode: c.Cluster.KeyMode}, dir, b)
	if err != nil {
		return cluster{}, err
	}
	d.TEE = &dev.Daemon{Root: roots[0].String(), Socket: c.Cluster.TEE}
	return cluster{d}, d.PrepareState()
}

// refusesOurPolicy returns an error unless the other authority refuses to start under this
// cluster's first policy.
func refusesOurPolicy(ctx context.Context, c check.Checker, other cluster) error {
	a, err := authorityclient.Dial(ctx, c.App, c.ClientPins())
	if err != nil {
		return err
	}
	defer a.Close()
	return c.MustNotStart(ctx, other.Dir, other.StoreFile(), a.Approved.Steps()[0], wire.WrongDraft)
}
