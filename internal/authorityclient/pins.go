package authorityclient

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/spf13/cobra"
)

// Pins are what a client is given: where the authority is, which is trusted
// with nothing, and the values that it pins.
type Pins struct {
	Authorities []string
	Gateway     Gateway // through which trust is fetched without Authorities
	freshTrust  bool
	Genesis     string
	Task        string
	Group       string
	partyKeys   []string
	ID          string
	MinSequence uint64
	State       string
}

// RegisterAuthority adds what names an authority.
func (p *Pins) RegisterAuthority(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&p.Authorities, "authority", nil, "https URL of the authority; repeat for its replicas")
	cmd.Flags().StringVar(&p.Genesis, "genesis", "", "digest of the first policy, 64 hexadecimal digits")
	cmd.Flags().StringVar(&p.State, "state", "", "file that remembers the newest policy seen (default in the state directory)")
	_ = cmd.MarkFlagRequired("genesis")
}

// Register adds what names a service as well.
func (p *Pins) Register(cmd *cobra.Command) {
	p.RegisterAuthority(cmd)
	flags := cmd.Flags()
	flags.StringVar(&p.Task, "task", "", "task to follow through the releases its owners approve")
	flags.StringVar(&p.ID, "id", "", "identity to pin: exactly this code")
	flags.Uint64Var(&p.MinSequence, "min-sequence", 0, "refuse policy before this one")
}

// RegisterGroup adds what names a group, and the party whose approval counts.
func (p *Pins) RegisterGroup(cmd *cobra.Command, use string) {
	cmd.Flags().StringVar(&p.Group, "group", "", use)
	p.RegisterParty(cmd)
}

// RegisterParty adds the keys of the party whose approval counts.
func (p *Pins) RegisterParty(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&p.partyKeys, "party-key", nil, "with a group: "+sshkey.PartyKeyHelp+" of a party that must approve it; repeat for its new key")
}

// RegisterFresh adds what is wanted of trust through a gateway.
func (p *Pins) RegisterFresh(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.freshTrust, "fresh-trust", false, "without --authority: evidence of the authority that is made for this command, not one that clients share for minutes")
}

// SeenFile is where the newest policy of a genesis is remembered.
func SeenFile(a *frame.App, p Pins) (string, error) {
	if p.State != "" {
		return p.State, nil
	}
	dir, err := a.StateDir("seen")
	if err != nil {
		return "", fmt.Errorf("remembering the newest policy seen: %w", err)
	}
	return filepath.Join(dir, p.Genesis+".json"), nil
}

// ReadState reads what was seen before; a file that does not exist is nothing.
func ReadState(path string) (client.State, error) {
	b, err := frame.ReadFile(path, wire.MaxResponse)
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

// Remember stores the newest policy seen for the next command with these pins, unless a newer one
// is stored already.
func Remember(a *frame.App, p Pins, s client.State) error {
	path, err := SeenFile(a, p)
	if err != nil {
		return err
	}
	known, err := ReadState(path)
	if err != nil || known.Policy().Genuine() && known.Policy().Knows(s.Policy().PolicyHead()) {
		return err
	}
	return writeState(path, s)
}

func writeState(path string, s client.State) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return frame.ReplaceFile(path, s.Bytes())
}
