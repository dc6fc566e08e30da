package identitycheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// RootSteal checks the theft of a sealed root: the operator of an authority copies the root to
// an empty store, and starts the same program in the same TEE under first policies of their own.
// Each policy names the correct root and program, so only the draft that was sealed with the
// root distinguishes it from the founders' policy. With such a policy the operator could make a
// backup, or seal the root to their own program. The authority must refuse to start.
func RootSteal(ctx context.Context, c check.Checker) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-steal-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	victim, err := servedOnce(ctx, c, dir)
	if err != nil {
		return "", err
	}
	stolen := filepath.Join(dir, "stolen.db")
	if err := copyRoot(ctx, victim.StoreFile(), stolen); err != nil {
		return "", err
	}
	forged, err := victim.forgedHistories()
	if err != nil {
		return "", err
	}
	for name, step := range forged {
		if err := c.MustNotStart(ctx, dir, stolen, step, wire.WrongDraft); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
	}
	// The authority starts under the founders' own policy: the cause of the refusals was the
	// policy.
	if err := os.Rename(stolen, victim.StoreFile()); err != nil {
		return "", err
	}
	ctx, victim.Cancel = context.WithCancel(ctx)
	defer func() { err = errors.Join(err, victim.Stop()) }()
	if err := victim.StartAuthority(ctx); err != nil {
		return "", fmt.Errorf("under the founders' policy: %w", err)
	}
	return fmt.Sprintf("%d other first policies over a copied root refused [draft]; the founders' own is served", len(forged)), nil
}

// servedOnce returns a second authority in the same TEE that has adopted its first policy,
// served, and ended.
func servedOnce(ctx context.Context, c check.Checker, dir string) (cluster, error) {
	d, err := otherCluster(ctx, c, dir)
	if err != nil {
		return cluster{}, err
	}
	ctx, d.Cancel = context.WithCancel(ctx)
	for _, step := range []func(context.Context) error{d.InitAuthority, d.SignGenesis, d.StartAuthority} {
		if err := step(ctx); err != nil {
			return cluster{}, errors.Join(err, d.Stop())
		}
	}
	return d, d.Stop()
}

// copyRoot makes a store that contains only the sealed root of another store.
func copyRoot(ctx context.Context, from, to string) (err error) {
	old, err := store.Open(ctx, "sqlite:"+from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	row, err := old.RootRow(ctx)
	if err != nil {
		return err
	}
	made, err := store.Create(ctx, "sqlite:"+to)
	if err != nil {
		return err
	}
	return errors.Join(made.CreateRoot(ctx, row), made.Close())
}

// forgedHistories returns first policies with the root of this cluster, each signed by the
// owners that it names.
func (d cluster) forgedHistories() (map[string]policy.Step, error) {
	raw, err := os.ReadFile(d.GenesisFile())
	if err != nil {
		return nil, err
	}
	genesis := string(raw)
	owners, err := dev.Owners(filepath.Join(d.State, "owners"))
	if err != nil {
		return nil, err
	}
	strangers, err := sshkey.Pairs(filepath.Join(d.Dir, "strangers"), "owner-1", "owner-2", "owner-3")
	if err != nil {
		return nil, err
	}
	own := genesis
	for i, o := range owners {
		lines, err := drafttext.Owners([]string{"a=" + o.Path + ".pub", "b=" + strangers[i].Path + ".pub"})
		if err != nil {
			return nil, err
		}
		own = strings.ReplaceAll(own, lines[0].SSH, lines[1].SSH)
	}
	evil := localtee.Reference("soft", localtee.Measurement{Program: wire.Sum([]byte("a program of the operator's")).String()}, nil)
	beside := strings.Replace(own, "# may hold the root\nreference = [\n", "# may hold the root\nreference = [\n  "+evil+",\n", 1)
	forged := map[string]policy.Step{}
	for name, of := range map[string]struct {
		text string
		by   []sshkey.Pair
	}{
		"owners of the operator's":             {own, strangers},
		"a program of the operator's, as well": {beside, strangers},
		"a draft that was signed and given up": {genesis + "# given up\n", owners},
	} {
		if of.text == genesis || name != "owners of the operator's" && of.text == own {
			return nil, fmt.Errorf("%s: the genesis has nothing to change", name)
		}
		step := policy.Step{Policy: []byte(of.text)}
		for _, o := range of.by[:dev.Quorum] {
			sig, err := sshkey.Sign(d.App, o.Path, sshsig.ForPolicy, step.Policy)
			if err != nil {
				return nil, err
			}
			step.Signatures = append(step.Signatures, sig)
		}
		forged[name] = step
	}
	return forged, nil
}
