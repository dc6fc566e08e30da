package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cohort-tee/cohort/internal/founding"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Files of a cluster's founding, in its state.
func (d *dev) draftFile() string { return filepath.Join(d.state, "draft.toml") }
func (d *dev) initFile() string  { return filepath.Join(d.state, "authority-init.json") }

// initAuthority writes the draft of the first policy and makes the root for it, once
// in the life of a state.
func (d *dev) initAuthority(ctx context.Context) error {
	if _, err := os.Stat(d.genesisFile()); err == nil {
		return nil
	}
	draft, err := d.writeDraft()
	if err != nil {
		return err
	}
	if err := replaceFile(d.draftFile(), draft); err != nil {
		return err
	}
	out, err := d.tee.output(ctx, d.bin.cohort, "authority", "init", "--draft", d.draftFile(), "--store", "sqlite:"+d.storeFile())
	if err != nil {
		return err
	}
	return replaceFile(d.initFile(), out)
}

// writeDraft is the draft of the first policy: this cohort as authority, the program
// as task.
func (d *dev) writeDraft() ([]byte, error) {
	owners, err := devOwners(filepath.Join(d.state, "owners"))
	if err != nil {
		return nil, err
	}
	draft, err := d.draft(owners)
	if err != nil {
		return nil, err
	}
	if d.cluster.Group != "" {
		return d.withGroup(draft)
	}
	return []byte(draft.text()), nil
}

func (d *dev) draft(owners []owner) (draft, error) {
	self, err := measure("", []string{d.bin.cohort})
	if err != nil {
		return draft{}, err
	}
	machines, err := softMachines([]string{d.tee.root})
	if err != nil {
		return draft{}, err
	}
	out := draft{
		trustDomain: devDomain, created: d.app.now(), quorum: devQuorum, softRoots: []string{d.tee.root},
		authority: []string{self.Reference}, machines: machines,
		task: draftTask{
			name: d.cluster.Task, keyMode: d.cluster.KeyMode, release: "1", names: []string{d.cluster.ServerName},
			references: []string{d.reference.Reference}, dynamic: d.reference.Dynamic,
		},
	}
	var pairs []string
	for _, o := range owners {
		pairs = append(pairs, o.name+"="+o.path+".pub")
	}
	out.owners, err = ownerLines(pairs)
	return out, err
}

// devQuorum is how many of the three owners sign.
const devQuorum = 2

// signGenesis does what two founders do: each checks what init printed by the draft,
// and signs the genesis that it becomes.
func (d *dev) signGenesis(context.Context) error {
	text, err := os.ReadFile(d.genesisFile())
	if errors.Is(err, os.ErrNotExist) {
		text, err = d.found()
	}
	d.cluster.Genesis = wire.Sum(text).Hex()
	return err
}

func (d *dev) found() ([]byte, error) {
	genesis, err := d.checkedGenesis()
	if err != nil {
		return nil, err
	}
	owners, err := devOwners(filepath.Join(d.state, "owners"))
	if err != nil {
		return nil, err
	}
	for _, o := range owners[:devQuorum] {
		sig, err := d.app.sshSign(o.path, policy.ForPolicy, genesis)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(d.genesisFile()+"."+o.name+".sig", []byte(sig), 0o644); err != nil {
			return nil, err
		}
	}
	return genesis, replaceFile(d.genesisFile(), genesis)
}

func (d *dev) checkedGenesis() ([]byte, error) {
	raw, err := os.ReadFile(d.draftFile())
	if err != nil {
		return nil, err
	}
	draft, err := policy.ParseDraft(raw)
	if err != nil {
		return nil, fmt.Errorf("checking the draft: %w", err)
	}
	b, err := os.ReadFile(d.initFile())
	if err != nil {
		return nil, err
	}
	root, err := founding.ParseRoot(b)
	if err != nil {
		return nil, err
	}
	founder := founding.Founder{Verifier: verifier(), Key: make([]byte, founding.KeySize), At: d.app.now()}
	rand.Read(founder.Key)
	genesis, challenge, err := founder.Check(draft, root, nil)
	if err == nil && challenge != nil {
		err = errors.New("the development TEE asks for a challenge")
	}
	return genesis, err
}
