package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"

	"github.com/cohort-tee/cohort/internal/authority"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

// authorityFlags are the flags of `cohort authority`.
type authorityFlags struct {
	tee        teeFlags
	store      string
	listen     string
	genesis    string
	signatures []string
	collateral collateralFlags
}

func (a *app) authorityCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "authority", Short: "Run the trusted certificate generator"}
	cmd.AddCommand(a.authorityInitCommand(), a.authorityRunCommand(), a.authorityBackupCommand(), a.authorityRestoreCommand(), a.authorityUnlockCommand())
	return cmd
}

func (a *app) authorityInitCommand() *cobra.Command {
	var f authorityFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make the authority's root secret inside the TEE and print its root",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.within(cmd.Context(), f.tee, func(ctx context.Context) error { return a.initAuthority(ctx, f) })
		},
	}
	f.tee.register(cmd)
	cmd.Flags().StringVar(&f.store, "store", "sqlite:authority.db", "database to make: sqlite:FILE, or an empty one of a server, postgres://USER@HOST/DATABASE")
	return cmd
}

// rootView is what `authority init` prints.
type rootView struct {
	Root     string          `json:"root"`
	Nonce    []byte          `json:"nonce"`
	Evidence json.RawMessage `json:"evidence"`
}

func (a *app) initAuthority(ctx context.Context, f authorityFlags) (err error) {
	db, err := store.Create(ctx, f.store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	made, err := authority.Init(ctx, authority.InitConfig{Store: db, Attester: a.tee.device, Sealer: a.tee.device})
	if err != nil {
		return err
	}
	evidence, err := json.Marshal(made.Evidence)
	if err != nil {
		return fmt.Errorf("encoding evidence: %w", err)
	}
	return a.emit("authority-init", rootView{made.Root.String(), made.Nonce, evidence}, fmt.Sprintf("root %s\n", made.Root))
}

func (a *app) authorityRunCommand() *cobra.Command {
	var f authorityFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve the authority's API",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.within(cmd.Context(), f.tee, func(ctx context.Context) error { return a.runAuthority(ctx, f) })
		},
	}
	f.tee.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.store, "store", "sqlite:authority.db", "database: sqlite:FILE or postgres://USER@HOST/DATABASE")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:7440", "address to serve on")
	flags.StringVar(&f.genesis, "genesis-policy", "", "file of the first policy; needed once, for a new store")
	flags.StringArrayVar(&f.signatures, "signature", nil, "file of an owner's signature over it; repeat")
	f.collateral.register(cmd)
	return cmd
}

// runAuthority is an authority's life inside a TEE.
func (a *app) runAuthority(ctx context.Context, f authorityFlags) (err error) {
	genesis, err := readGenesis(f)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", f.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	db, err := store.Open(ctx, f.store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	found := f.collateral.open(db, a.log, a.now)
	served, err := authority.Open(ctx, authority.Config{
		Store: db, Attester: a.tee.device, Sealer: a.tee.device, Verifier: verifier(),
		Clock: authority.SystemClock(), Log: a.log, Genesis: genesis, Endorser: found,
	})
	if err != nil {
		return err
	}
	a.log.Info("serving", "address", listener.Addr(), "root", served.Root(), "genesis", served.Genesis().Hex(), "trust_domain", served.TrustDomain())
	ctx, stop := context.WithCancel(ctx)
	renewing := make(chan struct{})
	go func() { defer close(renewing); found.Run(ctx) }()
	defer func() { stop(); <-renewing }()
	return served.Serve(ctx, listener)
}

// readGenesis reads the first policy and its signatures, if they are given.
func readGenesis(f authorityFlags) (*policy.Step, error) {
	if f.genesis == "" {
		if len(f.signatures) > 0 {
			return nil, usage("--signature needs --genesis-policy")
		}
		return nil, nil
	}
	file, err := readFile(f.genesis, wire.MaxPolicy)
	if err != nil {
		return nil, err
	}
	step := &policy.Step{Policy: file}
	for _, path := range f.signatures {
		sig, err := readFile(path, wire.MaxSignature)
		if err != nil {
			return nil, err
		}
		step.Signatures = append(step.Signatures, string(sig))
	}
	return step, nil
}
