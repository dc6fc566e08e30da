package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/authority"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/founding"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/spf13/cobra"
)

// initFlags are the flags of `authority init`.
type initFlags struct {
	tee         teeFlags
	collateral  collateralFlags
	store       string
	draft, open string
	again       bool
}

func (a *app) authorityInitCommand() *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:   "init --draft FILE",
		Short: "Make the authority's root for a draft of the first policy, inside the TEE",
		Long: "Make the authority's root secret for a draft of the first policy, inside the TEE,\n" +
			"and print what the founders check with `cohort policy sign --init`: the root, and\n" +
			"evidence over root and draft. The root serves that draft and no other. With --open,\n" +
			"answer the challenge of a founder instead.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (f.draft == "") == (f.open == "") || f.again && f.open != "" {
				return usage("give --draft, with or without --again, or --open")
			}
			return a.within(cmd.Context(), f.tee, func(ctx context.Context) error {
				if f.open != "" {
					return a.openChallenge(ctx, f.open)
				}
				return a.initAuthority(ctx, f)
			})
		},
	}
	f.tee.register(cmd)
	f.collateral.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.store, "store", "sqlite:authority.db", "database to make: sqlite:FILE, or an empty one of a server, postgres://USER@HOST/DATABASE")
	flags.StringVar(&f.draft, "draft", "", "file of the first policy, with an empty authority.root")
	flags.BoolVar(&f.again, "again", false, "replace a root that no policy was adopted under; its founders sign anew")
	flags.StringVar(&f.open, "open", "", "file of a founder's challenge (cohort policy sign --init writes it)")
	return cmd
}

// initAuthority makes a root and prints it, which is a file for founders whatever
// --output is.
func (a *app) initAuthority(ctx context.Context, f initFlags) (err error) {
	raw, err := readFile(f.draft, wire.MaxPolicy)
	if err != nil {
		return err
	}
	draft, err := policy.ParseDraft(raw)
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
	made, err := authority.Init(ctx, authority.InitConfig{
		Store: db, Attester: a.tee.device, Sealer: a.tee.device, Draft: draft, Endorser: f.collateral.open(nil, a.now), Again: f.again,
	})
	if err != nil {
		return err
	}
	a.say("root %s\ndraft %s\ngive this output and the draft to the founders, for `cohort policy sign --init`", made.Root, made.Draft)
	_, err = a.out.Write(made.Bytes())
	return err
}

// openChallenge answers a founder's challenge; the proof is a file too.
func (a *app) openChallenge(ctx context.Context, path string) error {
	b, err := readFile(path, wire.MaxRequest)
	if err != nil {
		return err
	}
	challenge, err := founding.ParseChallenge(b)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	proof, err := founding.OpenChallenge(ctx, a.tee.device, a.tee.device, challenge)
	if err != nil {
		return err
	}
	a.say("give this proof to the founder who made the challenge, for `cohort policy sign --init --proof`")
	_, err = a.out.Write(proof.Bytes())
	return err
}

// signFlags are the flags of `policy sign`.
type signFlags struct {
	collateral       collateralFlags
	key, out         string
	init, proof      string
	challenge        string
	founders, policy string // directory of the founder's key, file to sign
}

// signFirst checks a founder's own copy of the first policy with what `authority
// init` printed, fills the root into it, and signs it. No flag signs a first policy
// without that: the root in it might be one that the operator has.
func (a *app) signFirst(ctx context.Context, f signFlags, draft policy.Draft) error {
	if f.init == "" {
		return wire.Refuse(wire.EvidenceMissing, "sign: the first policy", "no evidence of its authority root", "--init with what `cohort authority init --draft` printed")
	}
	genesis, err := a.checkInit(ctx, f, draft)
	if err != nil {
		return err
	}
	sig, err := a.sshSign(f.key, policy.ForPolicy, genesis)
	if err != nil {
		return err
	}
	if draft.Root().IsZero() {
		if err := replaceFile(f.policy, genesis); err != nil {
			return err
		}
		a.say("wrote the root into %s, and changed nothing else; genesis %s", f.policy, wire.Sum(genesis).Hex())
	}
	return a.write("signature", f.out, []byte(sig))
}

// checkInit gives the genesis to sign, or writes the challenge that the machine must
// answer first.
func (a *app) checkInit(ctx context.Context, f signFlags, draft policy.Draft) ([]byte, error) {
	b, err := readFile(f.init, wire.MaxRequest)
	if err != nil {
		return nil, err
	}
	root, err := founding.ParseRoot(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.init, err)
	}
	var proof *founding.Proof
	if f.proof != "" {
		if b, err = readFile(f.proof, wire.MaxRequest); err != nil {
			return nil, err
		}
		read, err := founding.ParseProof(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.proof, err)
		}
		proof = &read
	}
	founder := founding.Founder{Verifier: verifier(), At: a.now()}
	if founder.Endorsements, err = f.endorse(ctx, a, root); err != nil {
		return nil, err
	}
	if founder.Key, err = founderKey(f.founders); err != nil {
		return nil, err
	}
	genesis, challenge, err := founder.Check(draft, root, proof)
	if err != nil {
		return nil, err
	}
	if challenge == nil {
		a.say("init's evidence is of the program and of a machine that the draft names")
		return genesis, nil
	}
	if err := replaceFile(f.challenge, challenge.Bytes()); err != nil {
		return nil, err
	}
	return nil, &fault{string(wire.EvidenceMissing),
		wire.Refuse(wire.EvidenceMissing, "sign: proof of init's machine", "none", "the answer to "+f.challenge),
		"run `cohort authority init --open " + filepath.Base(f.challenge) + "` on that machine, and sign again with --proof and what it prints"}
}

// endorse is what vendors say of the TEE of init, beside what came along.
func (f signFlags) endorse(ctx context.Context, a *app, r founding.Root) (attest.Endorsements, error) {
	var evidence attest.Evidence
	if err := evidence.UnmarshalJSON(r.Evidence); err != nil {
		return nil, err
	}
	found, err := f.collateral.open(nil, a.now).Endorse(ctx, evidence)
	if err != nil {
		a.say("asking the vendor failed, so what came with the evidence counts alone: %v", err)
		return nil, nil
	}
	return found, nil
}

// founderKey is this founder's key for challenges, made when it is first wanted.
func founderKey(dir string) ([]byte, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "challenge.key")
	key, err := os.ReadFile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	key = make([]byte, founding.KeySize)
	rand.Read(key)
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = file.Write(key)
	return key, errors.Join(err, file.Close())
}
