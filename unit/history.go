package unit

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// peer is one address of the authority.
type peer struct {
	*history.Peer
	address string
}

func (u *Unit) dial(address string) (*peer, error) {
	p, err := history.Dial(address, u.judge)
	if err != nil {
		return nil, fmt.Errorf("authority %q: %w", address, err)
	}
	return &peer{p, address}, nil
}

// judge says how the authority's leaf is checked in a handshake.
func (u *Unit) judge(leaf *x509.Certificate) (policy.Approved, time.Time, error) {
	at, err := judgedAt(leaf, u.config.Clock())
	return u.seen.Load().Policy(), at, err
}

// checkSigner demands that leaf is of kind authority under root, and root the
// one that the newest policy names.
func (u *Unit) checkSigner(leaf, root *x509.Certificate) error {
	approved, at, err := u.judge(leaf)
	if err != nil {
		return err
	}
	_, err = identity.Check([]*x509.Certificate{leaf}, root, identity.Expect{
		Policy: approved, Kinds: []identity.Kind{identity.KindAuthority}, Use: identity.UseSigning, At: at,
	})
	return err
}

// judgedAt is the time at which a fresh certificate is checked: now, or its
// begin when this machine's clock is behind the authority's by no more than
// clocks may differ. It refuses, with "clock", certificates of another time.
func judgedAt(c *x509.Certificate, now time.Time) (time.Time, error) {
	earliest := c.NotBefore.Add(wire.WindowLead - wire.MaxClockSkew)
	if now.Before(earliest) || !now.Before(c.NotAfter) {
		return time.Time{}, wire.Refuse(wire.ClockSkew, "certificate window: time here", now.UTC().Format(time.RFC3339),
			fmt.Sprintf("%s to %s", earliest.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339)))
	}
	if now.Before(c.NotBefore) {
		return c.NotBefore, nil
	}
	return now, nil
}

// refresh brings the unit to the authority's policy. An authority that does not
// know the unit's policy is refused with "behind", after it was given the newer
// history, so that the next attempt may find it caught up.
func (u *Unit) refresh(ctx context.Context, p *peer) error {
	next, err := p.Follow(ctx, *u.seen.Load(), u.config.Genesis)
	if err != nil {
		return errors.Join(err, u.teach(ctx, p, err))
	}
	u.seen.Store(&next)
	return nil
}

// teach gives an authority that is behind the history the unit holds. Other
// causes are left alone.
func (u *Unit) teach(ctx context.Context, p *peer, cause error) error {
	if !errors.Is(cause, wire.Behind) {
		return nil
	}
	return p.Teach(ctx, *u.seen.Load())
}
