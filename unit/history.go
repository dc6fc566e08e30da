package unit

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// peer is one address of the authority.
type peer struct {
	address string
	// unverified speaks TLS with whoever answers. It fetches the policy
	// history, which authenticates itself, and nothing else.
	unverified *api.Authority
	// authority speaks only with a holder of a kind-authority certificate
	// under the root that the newest policy names.
	authority *api.Authority
}

func (u *Unit) dial(address string) (*peer, error) {
	unverified, err := api.NewAuthority(address, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	if err != nil {
		return nil, fmt.Errorf("authority %q: %w", address, err)
	}
	authority, err := api.NewAuthority(address, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // replaced by the stricter check below
		VerifyConnection:   u.demandAuthority,
	})
	if err != nil {
		return nil, fmt.Errorf("authority %q: %w", address, err)
	}
	return &peer{address: address, unverified: unverified, authority: authority}, nil
}

func (p *peer) close() {
	p.unverified.Close()
	p.authority.Close()
}

// demandAuthority completes a handshake only with the authority of the newest
// policy. The authority presents its leaf and its root.
func (u *Unit) demandAuthority(state tls.ConnectionState) error {
	chain := state.PeerCertificates
	if len(chain) != 2 {
		return wire.Refuse(wire.BadChain, "authority: certificates presented", len(chain), 2)
	}
	return u.checkAuthority(chain[0], chain[1], identity.UseTLS)
}

// checkAuthority demands that leaf is of kind authority under root, and root the
// one that the newest policy names.
func (u *Unit) checkAuthority(leaf, root *x509.Certificate, use identity.Use) error {
	at, err := judgedAt(leaf, u.config.Clock())
	if err != nil {
		return err
	}
	_, err = identity.Check([]*x509.Certificate{leaf}, root, identity.Expect{
		Policy: u.known.Load().policy,
		Kinds:  []identity.Kind{identity.KindAuthority},
		Use:    use,
		At:     at,
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

// known is the newest policy history the unit has seen. It is immutable; the
// zero known has seen nothing.
type known struct {
	policy policy.Approved
	steps  []api.HistoryEntry
}

// refresh brings the unit to the authority's policy. An authority that does not
// know the unit's policy is refused with "behind", after it was given the newer
// history, so that the next attempt may find it caught up.
func (u *Unit) refresh(ctx context.Context, p *peer) error {
	next, err := u.known.Load().follow(ctx, u.config.Genesis, p.unverified)
	if err != nil {
		return errors.Join(err, u.teach(ctx, p, err))
	}
	u.known.Store(next)
	return nil
}

// follow fetches and approves what comes after k. A history that does not
// contain k is refused with "behind".
func (k *known) follow(ctx context.Context, pin attest.Digest, from *api.Authority) (*known, error) {
	for next := k; ; {
		answer, err := from.History(ctx, len(next.steps))
		if err != nil {
			return nil, fmt.Errorf("fetching the policy history: %w", err)
		}
		if answer.From != len(next.steps) {
			return nil, wire.Refuse(wire.Malformed, "policy history: first step", answer.From, len(next.steps))
		}
		next, err = next.extend(pin, answer.Entries)
		switch {
		case k.policy.OK() && errors.Is(err, wire.WrongSequence):
			return nil, wire.Refuse(wire.Behind, "policy history: step after the unit's head", "of another history", k.policy.Head())
		case err != nil:
			return nil, fmt.Errorf("replaying the policy history: %w", err)
		case next.policy.OK() && next.policy.Head() == answer.Head:
			return next, nil
		case len(answer.Entries) == 0:
			return nil, wire.Refuse(wire.Behind, "policy history: head", answer.Head, next.policy.Head())
		}
	}
}

// extend approves the steps that follow k.
func (k *known) extend(pin attest.Digest, entries []api.HistoryEntry) (*known, error) {
	next := &known{policy: k.policy, steps: append(k.steps[:len(k.steps):len(k.steps)], entries...)}
	if len(next.steps) > wire.MaxHistory {
		return nil, wire.Refuse(wire.TooLarge, "policy history: steps", len(next.steps), wire.MaxHistory)
	}
	for _, entry := range entries {
		var err error
		step := policy.Step{Policy: entry.Policy, Signatures: entry.Signatures}
		if next.policy.OK() {
			next.policy, err = next.policy.Next(step)
		} else {
			next.policy, err = policy.Genesis(pin, step)
		}
		if err != nil {
			return nil, err
		}
	}
	return next, nil
}

// teach gives an authority that is behind the history the unit holds. Other
// causes are left alone.
func (u *Unit) teach(ctx context.Context, p *peer, cause error) error {
	if !errors.Is(cause, wire.Behind) {
		return nil
	}
	k := u.known.Load()
	for from := 0; from < len(k.steps); {
		h := api.History{From: from, Entries: portion(k.steps[from:]), Head: k.policy.Head()}
		if _, err := p.authority.Push(ctx, h); err != nil {
			return fmt.Errorf("pushing the newer policy history: %w", err)
		}
		from += len(h.Entries)
	}
	return nil
}

// portion is as many of the first steps as one request holds, at least one.
func portion(steps []api.HistoryEntry) []api.HistoryEntry {
	size := 0
	for i, step := range steps {
		if size += len(step.Policy) + len(step.Signatures)*wire.MaxSignature; size > wire.MaxRequest/2 && i > 0 {
			return steps[:i]
		}
	}
	return steps
}
