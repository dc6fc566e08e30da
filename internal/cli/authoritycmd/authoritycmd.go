// Package authoritycmd is `cohort authority`: make a root, serve the API, make a backup of the
// root, and restore it.
//
// Files, each using those before it: backup.go, history.go, init.go, restore.go,
// authoritycmd.go.
package authoritycmd

import (
	"context"
	"errors"
	"net"

	"github.com/cohort-tee/cohort/internal/authority"
	"github.com/cohort-tee/cohort/internal/authority/admission"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/collateral"
	"github.com/cohort-tee/cohort/internal/opsserver"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

// authorityFlags are the flags of `cohort authority`.
type authorityFlags struct {
	tee        frame.TEEFlags
	store      string
	listen     string
	metrics    string
	genesis    string
	signatures []string
	history    string
	limits     admission.Limits
	collateral frame.CollateralFlags
}

// Command is `cohort authority`.
func Command(a *frame.App) *cobra.Command {
	cmd := &cobra.Command{Use: "authority", Short: "Run the trusted certificate generator"}
	cmd.AddCommand(authorityInitCommand(a), authorityRunCommand(a), authorityBackupCommand(a), authorityRestoreCommand(a), authorityUnlockCommand(a))
	return cmd
}

func authorityRunCommand(a *frame.App) *cobra.Command {
	var f authorityFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Serve the authority's API",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.Within(cmd.Context(), f.tee, func(ctx context.Context) error { return runAuthority(ctx, a, f) })
		},
	}
	f.tee.Register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.store, "store", "sqlite:authority.db", "database: sqlite:FILE or postgres://USER@HOST/DATABASE")
	flags.StringVar(&f.listen, "listen", "127.0.0.1:7440", "address to serve on")
	flags.StringVar(&f.metrics, "metrics", "", "address of plain HTTP /metrics, /livez and /readyz for the operator (default off); clients must not reach it")
	flags.StringVar(&f.genesis, "genesis-policy", "", "file of the first policy; needed once, for a new store")
	flags.StringArrayVar(&f.signatures, "signature", nil, "file of an owner's signature over it; repeat")
	flags.IntVar(&f.limits.PerAddress, "per-address", 100, "requests a second from one address, in bursts of twice that; raise it where many units or clients share one")
	flags.IntVar(&f.limits.PollsPerAddress, "polls-per-address", 8, "requests from one address that wait for the next policy step, units with a certificate apart; raise it where many clients share one")
	flags.StringVar(&f.history, "history", "", "file of a newer policy history to show to the authority: that of a backup, or the state of a client")
	f.collateral.Register(cmd)
	return cmd
}

// runAuthority runs an authority inside a TEE until it ends.
func runAuthority(ctx context.Context, a *frame.App, f authorityFlags) (err error) {
	genesis, err := readGenesis(f)
	if err != nil {
		return err
	}
	shown, err := readHistory(f.history)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", f.listen)
	if err != nil {
		return err
	}
	defer listener.Close()
	var operator net.Listener
	if f.metrics != "" {
		if operator, err = net.Listen("tcp", f.metrics); err != nil {
			return err
		}
		defer operator.Close()
	}
	db, err := store.Open(ctx, f.store)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var found *collateral.Collateral
	served, err := authority.Open(ctx, authority.Config{
		Store: db, Attester: a.TEE.Device, Sealer: a.TEE.Device, Verifier: localtee.Verifier(),
		Clock: trustedclock.System(), Log: a.Log, Genesis: genesis, Built: built(), History: shown, Limits: f.limits,
		Endorser: func(kept collateral.Cache) authority.Endorser {
			found = f.collateral.Open(kept, a.Now)
			return found
		},
	})
	if err != nil {
		return err
	}
	a.Log.Info("serving", "address", listener.Addr(), "root", served.RootDigest(), "genesis", served.Genesis().Hex(), "trust_domain", served.TrustDomain())
	ctx, stop := context.WithCancel(ctx)
	renewing := make(chan struct{})
	go func() { defer close(renewing); found.Run(ctx) }()
	defer func() { stop(); <-renewing }()
	return opsserver.RunBeside(ctx, operator, served.OperatorHandler(), a.Log, func(ctx context.Context) error { return served.Serve(ctx, listener) })
}

// readGenesis reads the first policy and its signatures, if they are given.
func readGenesis(f authorityFlags) (*policy.Step, error) {
	if f.genesis == "" {
		if len(f.signatures) > 0 {
			return nil, frame.Usage("--signature needs --genesis-policy")
		}
		return nil, nil
	}
	file, err := frame.ReadFile(f.genesis, wire.MaxPolicy)
	if err != nil {
		return nil, err
	}
	step := &policy.Step{Policy: file}
	for _, path := range f.signatures {
		sig, err := frame.ReadFile(path, wire.MaxSignature)
		if err != nil {
			return nil, err
		}
		step.Signatures = append(step.Signatures, string(sig))
	}
	return step, nil
}
