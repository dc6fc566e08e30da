package cli

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// pinFlags are what a client is given: where the authority is, which is trusted
// with nothing, and the values that it pins.
type pinFlags struct {
	authorities []string
	genesis     string
	task        string
	group       string
	partyKeys   []string
	id          string
	minSequence uint64
	state       string
}

// registerAuthority adds what names an authority.
func (p *pinFlags) registerAuthority(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&p.authorities, "authority", nil, "https URL of the authority; repeat for its replicas")
	cmd.Flags().StringVar(&p.genesis, "genesis", "", "digest of the first policy, 64 hexadecimal digits")
	cmd.Flags().StringVar(&p.state, "state", "", "file that remembers the newest policy seen (default in the state directory)")
	_ = cmd.MarkFlagRequired("genesis")
}

// register adds what names a service as well.
func (p *pinFlags) register(cmd *cobra.Command) {
	p.registerAuthority(cmd)
	flags := cmd.Flags()
	flags.StringVar(&p.task, "task", "", "task to follow through the releases its owners approve")
	flags.StringVar(&p.id, "id", "", "identity to pin: exactly this code")
	flags.Uint64Var(&p.minSequence, "min-sequence", 0, "refuse policy before this one")
}

// registerGroup adds what names a group, and the party whose approval counts.
func (p *pinFlags) registerGroup(cmd *cobra.Command, use string) {
	cmd.Flags().StringVar(&p.group, "group", "", use)
	p.registerParty(cmd)
}

func (p *pinFlags) registerParty(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&p.partyKeys, "party-key", nil, "with a group: "+partyKeyHelp+" of a party that must approve it; repeat for its new key")
}

// parties are the keys of the pinned party. Without them it prints one line of
// warning, where the pin is a group's.
func (a *app) parties(p pinFlags) ([]wire.Digest, error) {
	if p.group == "" {
		if len(p.partyKeys) > 0 {
			return nil, usage("--party-key needs --group")
		}
		return nil, nil
	}
	if len(p.partyKeys) == 0 {
		a.say("warning: without --party-key the owners of the policy choose the parties of group %s; give the key of the party you trust", p.group)
	}
	return parsePartyKeys(p.partyKeys)
}

// pin is what a client of one service pins.
func (p pinFlags) pin() (pin channel.Pin, err error) {
	pin.Task, pin.Group = p.task, p.group
	if pin.Genesis, err = wire.ParseDigest(p.genesis); err != nil {
		return pin, usage("--genesis: %w", err)
	}
	if p.group == "" && (p.task == "") == (p.id == "") || p.group != "" && p.task != "" {
		return pin, usage("give one of --task and --id")
	}
	if p.id != "" {
		if pin.ID, err = wire.ParseDigest(p.id); err != nil {
			return pin, usage("--id: %w", err)
		}
	}
	return pin, nil
}

// named refuses pins without an authority to ask.
func (p pinFlags) named() error {
	if len(p.authorities) == 0 {
		return usage("give --authority: " + beginsAtAuthority)
	}
	return nil
}

// beginsAtAuthority is why a gateway that serves the policy history is not enough to begin.
const beginsAtAuthority = "trust begins with evidence of an authority, and no gateway stands in for one"

// trust fetches trust for the pins, and remembers the newest policy seen.
func (a *app) trust(ctx context.Context, p pinFlags) (*client.Trust, error) {
	pin, err := p.pin()
	if err == nil {
		err = p.named()
	}
	if err != nil {
		return nil, err
	}
	config := client.TrustConfig{
		Authorities: p.authorities, Genesis: pin.Genesis, Task: pin.Task, Group: pin.Group, ID: pin.ID,
		MinSequence: p.minSequence, Verifier: verifier(), Clock: a.now,
	}
	if config.PartyKeys, err = a.parties(p); err != nil {
		return nil, err
	}
	path, err := a.seenFile(p)
	if err != nil {
		return nil, err
	}
	if config.State, err = readState(path); err != nil {
		return nil, err
	}
	t, err := client.FetchTrust(ctx, config)
	if err != nil {
		f := classify(err)
		if f.code == codeUnreachable {
			f.hint = "check that it runs and that the address is right, or give --authority of another replica: " + beginsAtAuthority
		}
		return nil, f
	}
	if bytes.Equal(t.State().Bytes(), config.State.Bytes()) {
		return t, nil
	}
	return t, writeState(path, t.State())
}

// seenFile is where the newest policy of a genesis is remembered.
func (a *app) seenFile(p pinFlags) (string, error) {
	if p.state != "" {
		return p.state, nil
	}
	dir, err := a.stateDir("seen")
	if err != nil {
		return "", fmt.Errorf("remembering the newest policy seen: %w", err)
	}
	return filepath.Join(dir, p.genesis+".json"), nil
}

func readState(path string) (client.State, error) {
	b, err := readFile(path, wire.MaxResponse)
	if errors.Is(err, os.ErrNotExist) {
		return client.State{}, nil
	}
	if err != nil {
		return client.State{}, err
	}
	s, err := client.ParseState(b)
	if err != nil {
		return s, fmt.Errorf("reading %s: %w", path, err)
	}
	return s, nil
}

func writeState(path string, s client.State) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return replaceFile(path, s.Bytes())
}

// authorityClient is an authority that was checked: it holds the root that the
// newest policy of the pinned genesis names.
type authorityClient struct {
	*api.Authority
	policy policy.Approved
}

// authority follows the policy history of the first authority that answers,
// and speaks with it as its policy says.
func (a *app) authority(ctx context.Context, p pinFlags) (authorityClient, error) {
	genesis, err := wire.ParseDigest(p.genesis)
	if err != nil {
		return authorityClient{}, usage("--genesis: %w", err)
	}
	if err := p.named(); err != nil {
		return authorityClient{}, err
	}
	path, err := a.seenFile(p)
	if err != nil {
		return authorityClient{}, err
	}
	seen, err := readState(path)
	if err != nil {
		return authorityClient{}, err
	}
	var faults []error
	for _, address := range p.authorities {
		c, err := a.authorityAt(ctx, address, genesis)
		if err == nil {
			err = c.knows(seen.Policy())
		}
		if err == nil {
			return c, nil
		}
		faults = append(faults, fmt.Errorf("authority %s: %w", address, err))
	}
	return authorityClient{}, errors.Join(faults...)
}

func (a *app) authorityAt(ctx context.Context, address string, genesis wire.Digest) (authorityClient, error) {
	var newest history.History
	judge := func(*x509.Certificate) (policy.Approved, time.Time, error) { return newest.Policy(), a.now(), nil }
	peer, err := history.NewPeer(history.Config{Address: address, LeafPolicy: judge, Clock: a.now})
	if err != nil {
		return authorityClient{}, err
	}
	newest, err = peer.FollowUnproved(ctx, newest, genesis)
	return authorityClient{peer.Authority, newest.Policy()}, err
}

// knows refuses an authority that is behind the newest policy seen before.
func (c authorityClient) knows(seen policy.Approved) error {
	if seen.OK() && !c.policy.Knows(seen.Head()) {
		return wire.Refuse(wire.Behind, "policy history: head", c.policy.Head(), seen.Head())
	}
	return nil
}
