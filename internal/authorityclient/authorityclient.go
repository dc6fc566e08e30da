// Package authorityclient connects commands to an authority: the flags that pin one
// ([Pins]), trust in it ([Trust]), and a client of it whose policy history was checked
// ([Dial]). [Command] makes a command of that.
//
// It trusts the pinned genesis digest and nothing at the addresses. It refuses an authority
// that does not hold the root which the newest policy names, and one that is behind the newest
// policy that this machine has seen, which it remembers in a file.
//
// Files, each using those before it: command.go, gateway.go, history.go, live.go,
// pins.go, authorityclient.go, trust.go.
package authorityclient

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Client is an authority that was checked: it holds the root that the
// newest policy of the pinned genesis names.
type Client struct {
	*api.Authority
	Approved policy.Approved
}

// Dial follows the policy history of the first authority that responds,
// and connects to it by that policy.
func Dial(ctx context.Context, a *frame.App, p Pins) (Client, error) {
	genesis, err := wire.ParseDigest(p.Genesis)
	if err != nil {
		return Client{}, frame.Usage("--genesis: %w", err)
	}
	if len(p.Authorities) == 0 {
		return Client{}, frame.Usage("give --authority: a gateway passes on trust and history alone")
	}
	path, err := SeenFile(a, p)
	if err != nil {
		return Client{}, err
	}
	seen, err := ReadState(path)
	if err != nil {
		return Client{}, err
	}
	var faults []error
	for _, address := range p.Authorities {
		c, err := DialAt(ctx, a, address, genesis)
		if err == nil {
			err = c.Knows(seen.Policy())
		}
		if err == nil {
			return c, nil
		}
		faults = append(faults, fmt.Errorf("authority %s: %w", address, err))
	}
	return Client{}, errors.Join(faults...)
}

// DialAt is Dial at one address, whatever this machine has seen before.
func DialAt(ctx context.Context, a *frame.App, address string, genesis wire.Digest) (Client, error) {
	var newest history.History
	leafPolicy := func(*x509.Certificate) (policy.Approved, time.Time, error) { return newest.Policy(), a.Now(), nil }
	peer, err := history.NewPeer(history.Config{Address: address, LeafPolicy: leafPolicy, Clock: a.Now})
	if err != nil {
		return Client{}, err
	}
	newest, err = peer.FollowUnproved(ctx, newest, genesis)
	return Client{peer.Authority, newest.Policy()}, err
}

// Knows refuses an authority that is behind the newest policy seen before.
func (c Client) Knows(seen policy.Approved) error {
	if seen.Genuine() && !c.Approved.Knows(seen.PolicyHead()) {
		return wire.Refuse(wire.Behind, "policy history: head", c.Approved.PolicyHead(), seen.PolicyHead())
	}
	return nil
}
