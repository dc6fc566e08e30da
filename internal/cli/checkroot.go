package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// rootSteal: the operator of an authority copies its sealed root into a store with
// nothing else, and starts the very same program in the very same TEE under first
// policies of their own. Each names the right root and the right program, so nothing
// but the draft that was sealed with the root tells them from the founders'. What the
// operator wants is a backup under it, or the root sealed to a program of theirs.
func (c checker) rootSteal(ctx context.Context) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-steal-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	victim, err := c.servedOnce(ctx, dir)
	if err != nil {
		return "", err
	}
	stolen := filepath.Join(dir, "stolen.db")
	if err := copyRoot(ctx, victim.storeFile(), stolen); err != nil {
		return "", err
	}
	forged, err := victim.forgedHistories()
	if err != nil {
		return "", err
	}
	for name, step := range forged {
		if err := c.mustNotStart(ctx, dir, stolen, step, wire.WrongDraft); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	// The founders' own policy starts it: what was refused is the history.
	if err := os.Rename(stolen, victim.storeFile()); err != nil {
		return "", err
	}
	ctx, victim.cancel = context.WithCancel(ctx)
	defer func() { err = errors.Join(err, victim.stop()) }()
	if err := victim.startAuthority(ctx); err != nil {
		return "", fmt.Errorf("under the founders' policy: %w", err)
	}
	return fmt.Sprintf("%d other first policies over a copied root refused [draft]; the founders' own is served", len(forged)), nil
}

// servedOnce is another authority in the same TEE, which has adopted its first policy,
// served, and ended.
func (c checker) servedOnce(ctx context.Context, dir string) (*dev, error) {
	d, err := c.otherCluster(ctx, dir)
	if err != nil {
		return nil, err
	}
	ctx, d.cancel = context.WithCancel(ctx)
	for _, step := range []func(context.Context) error{d.initAuthority, d.signGenesis, d.startAuthority} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, d.stop())
		}
	}
	return d, d.stop()
}

// copyRoot makes a store of nothing but another's sealed root.
func copyRoot(ctx context.Context, from, to string) (err error) {
	old, err := store.Open(ctx, "sqlite:"+from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	row, err := old.Root(ctx)
	if err != nil {
		return err
	}
	made, err := store.Create(ctx, "sqlite:"+to)
	if err != nil {
		return err
	}
	return errors.Join(made.CreateRoot(ctx, row), made.Close())
}

// forgedHistories are first policies with the root of this cluster, signed by those
// whom they name as owners.
func (d *dev) forgedHistories() (map[string]policy.Step, error) {
	raw, err := os.ReadFile(d.genesisFile())
	if err != nil {
		return nil, err
	}
	genesis := string(raw)
	owners, err := devOwners(filepath.Join(d.state, "owners"))
	if err != nil {
		return nil, err
	}
	strangers, err := sshKeys(filepath.Join(d.dir, "strangers"), "owner-1", "owner-2", "owner-3")
	if err != nil {
		return nil, err
	}
	own := genesis
	for i, o := range owners {
		lines, err := ownerLines([]string{"a=" + o.path + ".pub", "b=" + strangers[i].path + ".pub"})
		if err != nil {
			return nil, err
		}
		own = strings.ReplaceAll(own, lines[0].ssh, lines[1].ssh)
	}
	evil := reference("soft", measurement{Program: wire.Sum([]byte("a program of the operator's")).String()}, nil)
	beside := strings.Replace(own, "# may hold the root\nreference = [\n", "# may hold the root\nreference = [\n  "+evil+",\n", 1)
	forged := map[string]policy.Step{}
	for name, of := range map[string]struct {
		text string
		by   []owner
	}{
		"owners of the operator's":             {own, strangers},
		"a program of the operator's, as well": {beside, strangers},
		"a draft that was signed and given up": {genesis + "# given up\n", owners},
	} {
		if of.text == genesis || name != "owners of the operator's" && of.text == own {
			return nil, fmt.Errorf("%s: the genesis has nothing to change", name)
		}
		step := policy.Step{Policy: []byte(of.text)}
		for _, o := range of.by[:devQuorum] {
			sig, err := d.app.sshSign(o.path, policy.ForPolicy, step.Policy)
			if err != nil {
				return nil, err
			}
			step.Signatures = append(step.Signatures, sig)
		}
		forged[name] = step
	}
	return forged, nil
}

// mustNotStart starts the cluster's own program, measured, on a store and under a
// first policy, and demands that it refuses to serve.
func (c checker) mustNotStart(ctx context.Context, dir, storeFile string, first policy.Step, reason wire.Reason) error {
	file := filepath.Join(dir, "first.toml")
	args := []string{"authority", "run", "--store", "sqlite:" + storeFile, "--listen", "127.0.0.1:0", "--genesis-policy", file}
	if err := os.WriteFile(file, first.Policy, 0o600); err != nil {
		return err
	}
	for i, sig := range first.Signatures {
		path := fmt.Sprintf("%s.%d.sig", file, i)
		if err := os.WriteFile(path, []byte(sig), 0o600); err != nil {
			return err
		}
		args = append(args, "--signature", path)
	}
	settings, err := commandSettings(args)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "first.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	return mustEndRefused(ctx, c.cluster.TEE, launch{program: []string{c.cluster.Agent}, settings: settings, stdout: log, stderr: log}, reason)
}
