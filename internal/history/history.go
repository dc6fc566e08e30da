// Package history follows the policy history of an authority, for everybody who
// pins its genesis: units, clients, owners.
//
// A [History] authenticates itself by the owners' signatures back to the pinned
// genesis, so it is fetched over TLS from whoever answers. Everything else is
// asked only of a [Peer] that proves to hold the authority root which the newest
// policy names. A history that does not contain one that was seen before is
// refused with reason "behind".
package history

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// History is the policy history that somebody has seen, replayed. It is
// immutable; the zero History has seen nothing.
type History struct {
	policy  policy.Approved
	entries []api.HistoryEntry
}

// Policy is the newest policy; the zero Approved in the zero History.
func (h History) Policy() policy.Approved { return h.policy }

// Entries are all steps, as they were fetched. The caller does not change them.
func (h History) Entries() []api.HistoryEntry { return slices.Clip(h.entries) }

// Extend approves further steps. The first of all must have the digest pin.
func (h History) Extend(pin attest.Digest, entries []api.HistoryEntry) (History, error) {
	next := History{h.policy, append(h.Entries(), entries...)}
	if len(next.entries) == 0 || len(next.entries) > wire.MaxHistory {
		return History{}, wire.Refuse(wire.TooLarge, "policy history: steps", len(next.entries), fmt.Sprint("1 to ", wire.MaxHistory))
	}
	for _, e := range entries {
		step := policy.Step{Policy: e.Policy, Signatures: e.Signatures}
		var err error
		if next.policy.OK() {
			next.policy, err = next.policy.Next(step)
		} else {
			next.policy, err = policy.Genesis(pin, step)
		}
		if err != nil {
			return History{}, err
		}
	}
	return next, nil
}

// Peer is one address of the authority. Its owner closes it.
type Peer struct {
	// Authority speaks only with a holder of a kind-authority certificate
	// under the root that the policy names.
	Authority *api.Authority
	// unverified speaks TLS with whoever answers. It fetches the history and
	// nothing else.
	unverified *api.Authority
}

// Judge says, at each handshake, under which policy and for which time the
// authority's leaf is checked.
type Judge func(leaf *x509.Certificate) (policy.Approved, time.Time, error)

// Dial makes a peer of an https URL. It opens no connection.
func Dial(address string, judge Judge) (*Peer, error) {
	unverified, err := api.NewAuthority(address, &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true})
	if err != nil {
		return nil, err
	}
	authority, err := api.NewAuthority(address, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // replaced by the stricter check below
		VerifyConnection:   judge.demandAuthority,
	})
	if err != nil {
		return nil, err
	}
	return &Peer{Authority: authority, unverified: unverified}, nil
}

// Close ends idle connections.
func (p *Peer) Close() {
	p.unverified.Close()
	p.Authority.Close()
}

// demandAuthority completes a handshake only with the authority, which presents
// its leaf and its root.
func (j Judge) demandAuthority(state tls.ConnectionState) error {
	chain := state.PeerCertificates
	if len(chain) != 2 {
		return wire.Refuse(wire.BadChain, "authority: certificates presented", len(chain), 2)
	}
	approved, at, err := j(chain[0])
	if err != nil {
		return err
	}
	_, err = identity.Check(chain, chain[1], identity.Expect{
		Policy: approved,
		Kinds:  []identity.Kind{identity.KindAuthority},
		Use:    identity.UseTLS,
		At:     at,
	})
	return err
}

// Follow fetches and approves what comes after h. A peer whose history does not
// contain h is refused with "behind": it may be shown h, with [Peer.Teach].
func (p *Peer) Follow(ctx context.Context, h History, pin attest.Digest) (History, error) {
	for next := h; ; {
		unverified, err := p.unverified.History(ctx, len(next.entries))
		if err != nil {
			return History{}, fmt.Errorf("fetching the policy history: %w", err)
		}
		if unverified.From != len(next.entries) {
			return History{}, wire.Refuse(wire.Malformed, "policy history: first step", unverified.From, len(next.entries))
		}
		if len(unverified.Entries) == 0 {
			return next, next.caughtUp(unverified.Head)
		}
		next, err = next.Extend(pin, unverified.Entries)
		switch {
		case h.policy.OK() && errors.Is(err, wire.WrongSequence):
			return History{}, wire.Refuse(wire.Behind, "policy history: step after the newest seen", "of another history", h.policy.Head())
		case err != nil:
			return History{}, fmt.Errorf("replaying the policy history: %w", err)
		case next.policy.Head() == unverified.Head:
			return next, nil
		}
	}
}

func (h History) caughtUp(head attest.Digest) error {
	if want := h.policy.Head(); head != want || !h.policy.OK() {
		return wire.Refuse(wire.Behind, "policy history: head", head, want)
	}
	return nil
}

// Teach shows the authority a history; it adopts what is newer than its own.
func (p *Peer) Teach(ctx context.Context, h History) error {
	if _, err := p.Authority.Push(ctx, api.History{Entries: h.entries, Head: h.policy.Head()}); err != nil {
		return fmt.Errorf("pushing the newer policy history: %w", err)
	}
	return nil
}
