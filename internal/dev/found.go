package dev

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/founding"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policydraft"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// draftFile and initFile are files in the cluster's state with the steps of the founding.
func (d *Cluster) draftFile() string { return filepath.Join(d.State, "draft.toml") }

func (d *Cluster) initFile() string { return filepath.Join(d.State, "authority-init.json") }

// InitAuthority writes the draft of the first policy and makes the authority root for it, once
// for each state.
func (d *Cluster) InitAuthority(ctx context.Context) error {
	if _, err := os.Stat(d.GenesisFile()); err == nil {
		return nil
	}
	draft, err := d.writeDraft()
	if err != nil {
		return err
	}
	if err := frame.ReplaceFile(d.draftFile(), draft); err != nil {
		return err
	}
	out, err := d.TEE.output(ctx, d.Bin.Cohort, "authority", "init", "--draft", d.draftFile(), "--store", "sqlite:"+d.StoreFile())
	if err != nil {
		return err
	}
	return frame.ReplaceFile(d.initFile(), out)
}

// writeDraft returns the draft of the first policy, with this cohort as authority and the
// program as task.
func (d *Cluster) writeDraft() ([]byte, error) {
	owners, err := Owners(filepath.Join(d.State, "owners"))
	if err != nil {
		return nil, err
	}
	draft, err := d.draft(owners)
	if err != nil {
		return nil, err
	}
	if d.Doc.Group != "" {
		return d.withGroup(draft)
	}
	return []byte(draft.PolicyText()), nil
}

func (d *Cluster) draft(owners []sshkey.Pair) (drafttext.Draft, error) {
	self, err := localtee.Measure("", []string{d.Bin.Cohort})
	if err != nil {
		return drafttext.Draft{}, err
	}
	machines, err := drafttext.SoftMachines([]string{d.TEE.Root})
	if err != nil {
		return drafttext.Draft{}, err
	}
	out := drafttext.Draft{
		TrustDomain: Domain, Created: d.App.Now(), Quorum: Quorum, SoftRoots: []string{d.TEE.Root},
		Authority: []string{self.Reference}, Machines: machines,
		Task: drafttext.Task{
			Name: d.Doc.Task, KeyMode: d.Doc.KeyMode, Release: "1", Names: []string{d.Doc.ServerName},
			References: []string{d.reference.Reference}, Dynamic: d.reference.Dynamic,
		},
	}
	var pairs []string
	for _, o := range owners {
		pairs = append(pairs, o.Name+"="+o.Path+".pub")
	}
	out.Owners, err = drafttext.Owners(pairs)
	return out, err
}

// Quorum is the number of the three owners that must sign.
const Quorum = 2

// SignGenesis performs the steps of two founders: each verifies the output of init against the
// draft, and signs the resulting genesis policy.
func (d *Cluster) SignGenesis(context.Context) error {
	text, err := os.ReadFile(d.GenesisFile())
	if errors.Is(err, os.ErrNotExist) {
		text, err = d.found()
	}
	d.Doc.Genesis = wire.Sum(text).Hex()
	return err
}

func (d *Cluster) found() ([]byte, error) {
	genesis, err := d.checkedGenesis()
	if err != nil {
		return nil, err
	}
	owners, err := Owners(filepath.Join(d.State, "owners"))
	if err != nil {
		return nil, err
	}
	for _, o := range owners[:Quorum] {
		sig, err := sshkey.Sign(d.App, o.Path, sshsig.ForPolicy, genesis)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(d.GenesisFile()+"."+o.Name+".sig", []byte(sig), 0o644); err != nil {
			return nil, err
		}
	}
	return genesis, frame.ReplaceFile(d.GenesisFile(), genesis)
}

func (d *Cluster) checkedGenesis() ([]byte, error) {
	raw, err := os.ReadFile(d.draftFile())
	if err != nil {
		return nil, err
	}
	draft, err := policydraft.Parse(raw)
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
	founder := founding.Founder{Verifier: localtee.Verifier(), Key: make([]byte, founding.KeySize), At: d.App.Now()}
	rand.Read(founder.Key)
	genesis, challenge, err := founder.Check(draft, root, nil)
	if err == nil && challenge != nil {
		err = errors.New("the development TEE asks for a challenge")
	}
	return genesis, err
}
