package authoritycmd

import (
	"context"
	"errors"
	"fmt"

	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/founding"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/spf13/cobra"
)

// initFlags are the flags of `authority init`.
type initFlags struct {
	tee         frame.TEEFlags
	collateral  frame.CollateralFlags
	store       string
	draft, open string
	again       bool
}

func authorityInitCommand(a *frame.App) *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:   "init --draft FILE",
		Short: "Make the authority's root for a draft of the first policy, inside the TEE",
		Long: "Make the authority's root secret for a draft of the first policy, inside the TEE,\n" +
			"and print what the founders check with `cohort policy sign --init`: the root, and\n" +
			"evidence over root and draft. The root serves that draft and no other. With --open,\n" +
			"respond to the challenge of a founder instead.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (f.draft == "") == (f.open == "") || f.again && f.open != "" {
				return frame.Usage("give --draft, with or without --again, or --open")
			}
			return a.Within(cmd.Context(), f.tee, func(ctx context.Context) error {
				if f.open != "" {
					return openChallenge(ctx, a, f.open)
				}
				return initAuthority(ctx, a, f)
			})
		},
	}
	f.tee.Register(cmd)
	f.collateral.Register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.store, "store", "sqlite:authority.db", "database to make: sqlite:FILE, or an empty one of a server, postgres://USER@HOST/DATABASE")
	flags.StringVar(&f.draft, "draft", "", "file of the first policy, with an empty authority.root")
	flags.BoolVar(&f.again, "again", false, "replace a root that no policy was adopted under; its founders sign anew")
	flags.StringVar(&f.open, "open", "", "file of a founder's challenge (cohort policy sign --init writes it)")
	return cmd
}

// initAuthority makes a root and prints it, which is a file for founders whatever
// --output is.
func initAuthority(ctx context.Context, a *frame.App, f initFlags) (err error) {
	raw, err := frame.ReadFile(f.draft, wire.MaxPolicy)
	if err != nil {
		return err
	}
	draft, err := policydraft.Parse(raw)
	if err != nil {
		return fmt.Errorf("%s: %w", f.draft, err)
	}
	open := store.Create
	if f.again {
		open = store.Open
	}
	db, err := open(ctx, f.store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	made, err := sealed.CreateRoot(ctx, sealed.InitConfig{
		Store: db, Attester: a.TEE.Device, Sealer: a.TEE.Device, Draft: draft, Endorser: f.collateral.Open(nil, a.Now), Again: f.again,
	})
	if err != nil {
		return err
	}
	a.Notef("root %s\ndraft %s\ngive this output and the draft to the founders, for `cohort policy sign --init`", made.Root, made.Draft)
	_, err = a.Stdout.Write(made.Bytes())
	return err
}

// openChallenge responds to a founder's challenge; the proof is a file too.
func openChallenge(ctx context.Context, a *frame.App, path string) error {
	b, err := frame.ReadFile(path, wire.MaxRequest)
	if err != nil {
		return err
	}
	challenge, err := founding.ParseChallenge(b)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	proof, err := founding.OpenChallenge(ctx, a.TEE.Device, a.TEE.Device, challenge)
	if err != nil {
		return err
	}
	a.Notef("give this proof to the founder who made the challenge, for `cohort policy sign --init --proof`")
	_, err = a.Stdout.Write(proof.Bytes())
	return err
}
