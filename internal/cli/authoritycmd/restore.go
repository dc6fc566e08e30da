package authoritycmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/authority"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

func authorityRestoreCommand(a *frame.App) *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:   "restore [SHARE…]",
		Short: "Bring the root back inside the TEE: without shares, print the request that owners respond to",
		RunE: func(cmd *cobra.Command, shares []string) error {
			if (len(shares) == 0) != (f.request == "") {
				return frame.Usage("give no share to print a request, and --request with the shares that owners unlocked for it")
			}
			return a.Within(cmd.Context(), f.tee, func(ctx context.Context) error {
				if len(shares) == 0 {
					return askRestore(ctx, a)
				}
				return restoreAuthority(ctx, a, f, shares)
			})
		},
	}
	f.tee.Register(cmd)
	f.register(cmd)
	cmd.Flags().StringVar(&f.store, "store", "sqlite:authority.db", "database to make, as for `authority init`")
	return cmd
}

// askRestore prints a request, which is a file for owners whatever --output is.
func askRestore(ctx context.Context, a *frame.App) error {
	r, err := sealed.AskRestore(ctx, a.TEE.Device, a.TEE.Device)
	if err != nil {
		return err
	}
	b, err := json.Marshal(r) // in one line: evidence has one encoding
	if err != nil {
		return fmt.Errorf("encoding the request: %w", err)
	}
	_, err = a.Stdout.Write(append(b, '\n'))
	a.Notef("give this request to the owners, for `cohort authority unlock`")
	return err
}

func restoreAuthority(ctx context.Context, a *frame.App, f restoreFlags, paths []string) (err error) {
	request, entries, genesis, err := f.readRequest()
	if err != nil {
		return err
	}
	var shares []backup.Share
	for _, path := range paths {
		s, err := readShare(path)
		if err != nil {
			return err
		}
		a.Notef("read the share of %s, backup %s", s.Owner, s.ID)
		shares = append(shares, s)
	}
	db, err := store.Create(ctx, f.store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	root, err := authority.Restore(ctx, authority.RestoreConfig{
		Store: db, Attester: a.TEE.Device, Sealer: a.TEE.Device, Verifier: localtee.Verifier(), Clock: trustedclock.System(),
		Endorser: func(kept collateral.Cache) authority.Endorser { return f.collateral.Open(kept, a.Now) },
		Genesis:  genesis, History: entries, Request: request, Shares: shares,
	})
	if err != nil {
		return err
	}
	v := struct {
		Root   string `json:"root"`
		Backup string `json:"backup"`
		Steps  int    `json:"policies"`
	}{root.String(), shares[0].ID, len(entries)}
	return a.PrintResult("authority-restore", v, fmt.Sprintf("root %s, as policy names it\n%d policies restored; start `cohort authority run`\n", root, len(entries)))
}

func authorityUnlockCommand(a *frame.App) *cobra.Command {
	var f restoreFlags
	cmd := &cobra.Command{
		Use:   "unlock SHARE",
		Short: "As an owner: open a share and seal it to the TEE whose restore request it is",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return unlockShare(cmd.Context(), a, f, args[0])
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.key, "ssh-key", "", "private key that the share is sealed to: ssh-ed25519, or a file of age-keygen")
	cmd.Flags().StringVar(&f.out, "out", "", "file to write (default SHARE with .unlocked behind)")
	for _, name := range []string{"request", "genesis", "ssh-key"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

func unlockShare(ctx context.Context, a *frame.App, f restoreFlags, path string) error {
	request, entries, genesis, err := f.readRequest()
	if err != nil {
		return err
	}
	steps := make([]policy.Step, len(entries))
	for i, e := range entries {
		steps[i] = policy.Step{Policy: e.Policy, Signatures: e.Signatures}
	}
	approved, err := policy.Replay(genesis, steps)
	if err != nil {
		return fmt.Errorf("replaying --history: %w", err)
	}
	share, err := readShare(path)
	if err != nil {
		return err
	}
	id, err := ageIdentity(f.key)
	if err != nil {
		return err
	}
	asker := backup.RestoringTEE{Request: request, Approved: approved, Verifier: localtee.Verifier(), At: a.Now()}
	if asker.Endorsements, err = f.endorse(ctx, a, request); err != nil {
		return err
	}
	unlocked, err := backup.Unlock(share, id, asker)
	if err != nil {
		return err
	}
	if f.out == "" {
		f.out = path + ".unlocked"
	}
	a.Notef("the request is of an authority that policy %d names", approved.Document().Sequence)
	return a.Write("unlocked", f.out, unlocked.Bytes())
}

// endorse fetches the vendors' endorsements of the TEE that asks.
func (f restoreFlags) endorse(ctx context.Context, a *frame.App, r backup.Request) (attest.Endorsements, error) {
	var evidence attest.Evidence
	if err := evidence.UnmarshalJSON(r.Evidence); err != nil {
		return nil, err
	}
	found, err := f.collateral.Open(nil, a.Now).Endorse(ctx, evidence)
	if err != nil {
		return nil, fmt.Errorf("finding endorsements: %w", err)
	}
	return found, nil
}
