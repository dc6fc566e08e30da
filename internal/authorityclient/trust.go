package authorityclient

import (
	"bytes"
	"context"
	"strings"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Parties are the keys of the pinned party. Without them it prints one line of
// warning, where the pin is a group's.
func Parties(a *frame.App, p Pins) ([]wire.Digest, error) {
	if p.Group == "" {
		if len(p.partyKeys) > 0 {
			return nil, frame.Usage("--party-key needs --group")
		}
		return nil, nil
	}
	if len(p.partyKeys) == 0 {
		a.Notef("warning: without --party-key the owners of the policy choose the parties of group %s; give the key of the party you trust", p.Group)
	}
	return sshkey.ParsePartyKeys(p.partyKeys)
}

// ParsePin is what a client of one service pins.
func (p Pins) ParsePin() (pin unitauth.Pin, err error) {
	pin.Task, pin.Group = p.Task, p.Group
	if pin.Genesis, err = wire.ParseDigest(p.Genesis); err != nil {
		return pin, frame.Usage("--genesis: %w", err)
	}
	if p.Group == "" && (p.Task == "") == (p.ID == "") || p.Group != "" && p.Task != "" {
		return pin, frame.Usage("give one of --task and --id")
	}
	if p.ID != "" {
		if pin.ID, err = wire.ParseDigest(p.ID); err != nil {
			return pin, frame.Usage("--id: %w", err)
		}
	}
	return pin, nil
}

// Trust fetches trust for the pins, and remembers the newest policy seen. Without an authority it
// fetches it through the gateway.
func Trust(ctx context.Context, a *frame.App, p Pins) (*client.Trust, error) {
	pin, err := p.ParsePin()
	if err != nil {
		return nil, err
	}
	config := client.TrustConfig{
		Authorities: p.Authorities, Fresh: p.freshTrust, Genesis: pin.Genesis, Task: pin.Task, Group: pin.Group, ID: pin.ID,
		MinSequence: p.MinSequence, Verifier: localtee.Verifier(), Clock: a.Now,
	}
	if len(p.Authorities) == 0 {
		if p.Gateway.URL == "" {
			return nil, frame.Usage("give --authority, or --gateway of one that passes its responses on")
		}
		config.Gateways = strings.Split(p.Gateway.URL, ",")
		if config.GatewayCA, err = p.Gateway.CertPool(); err != nil {
			return nil, err
		}
	}
	if config.PartyKeys, err = Parties(a, p); err != nil {
		return nil, err
	}
	path, err := SeenFile(a, p)
	if err != nil {
		return nil, err
	}
	if config.State, err = ReadState(path); err != nil {
		return nil, err
	}
	t, err := client.FetchTrust(ctx, config)
	if err != nil {
		f := frame.Classify(err)
		if f.Code == frame.CodeUnreachable {
			f.Hint = "check that it runs and that the address is right, or give --authority of another replica; a gateway passes trust on only with --authority of its own (`cohort manager`)"
		}
		return nil, f
	}
	if bytes.Equal(t.State().Bytes(), config.State.Bytes()) {
		return t, nil
	}
	return t, writeState(path, t.State())
}
