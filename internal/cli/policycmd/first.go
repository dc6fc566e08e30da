package policycmd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/founding"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// signFlags are the flags of `policy sign`.
type signFlags struct {
	collateral       frame.CollateralFlags
	key, out         string
	init, proof      string
	challenge        string
	founders, policy string // directory of the founder's key, file to sign
}

// signFirst checks a founder's own copy of the first policy with what `authority
// init` printed, fills the root into it, and signs it. No flag signs a first policy
// without that: the root in it might be one that the operator has.
func signFirst(ctx context.Context, a *frame.App, f signFlags, draft policydraft.Draft) error {
	if f.init == "" {
		return wire.Refuse(wire.EvidenceMissing, "sign: the first policy", "no evidence of its authority root", "--init with what `cohort authority init --draft` printed")
	}
	genesis, err := checkInit(ctx, a, f, draft)
	if err != nil {
		return err
	}
	sig, err := sshkey.Sign(a, f.key, sshsig.ForPolicy, genesis)
	if err != nil {
		return err
	}
	if draft.NamedRoot().IsZero() {
		if err := frame.ReplaceFile(f.policy, genesis); err != nil {
			return err
		}
		a.Notef("wrote the root into %s, and changed nothing else; genesis %s", f.policy, wire.Sum(genesis).Hex())
	}
	return a.Write("signature", f.out, []byte(sig))
}

// checkInit returns the genesis to sign, or writes the challenge that the machine must
// respond to first.
func checkInit(ctx context.Context, a *frame.App, f signFlags, draft policydraft.Draft) ([]byte, error) {
	b, err := frame.ReadFile(f.init, wire.MaxRequest)
	if err != nil {
		return nil, err
	}
	root, err := founding.ParseRoot(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.init, err)
	}
	var proof *founding.Proof
	if f.proof != "" {
		if b, err = frame.ReadFile(f.proof, wire.MaxRequest); err != nil {
			return nil, err
		}
		read, err := founding.ParseProof(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.proof, err)
		}
		proof = &read
	}
	founder := founding.Founder{Verifier: localtee.Verifier(), At: a.Now()}
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
		a.Notef("init's evidence is of the program and of a machine that the draft names")
		return genesis, nil
	}
	if err := frame.ReplaceFile(f.challenge, challenge.Bytes()); err != nil {
		return nil, err
	}
	return nil, &frame.Fault{Code: string(wire.EvidenceMissing),
		Cause: wire.Refuse(wire.EvidenceMissing, "sign: proof of init's machine", "no proof given", "the response to "+f.challenge),
		Hint:  "run `cohort authority init --open " + filepath.Base(f.challenge) + "` on that machine, and sign again with --proof and what it prints"}
}

// endorse fetches the vendors' endorsements of the TEE of init, beside what came along.
func (f signFlags) endorse(ctx context.Context, a *frame.App, r founding.Root) (attest.Endorsements, error) {
	var evidence attest.Evidence
	if err := evidence.UnmarshalJSON(r.Evidence); err != nil {
		return nil, err
	}
	found, err := f.collateral.Open(nil, a.Now).Endorse(ctx, evidence)
	if err != nil {
		a.Notef("asking the vendor failed, so what came with the evidence counts alone: %v", err)
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
