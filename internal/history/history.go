// Package history follows the policy history of an authority, for everybody who
// pins its genesis: units, clients, owners.
//
// A [History] authenticates itself by the owners' signatures back to the pinned
// genesis, and by the authority's signature over its head ([identity.ProvedHead]): a
// step that owners signed and that is not in force yet counts for nothing. So it is
// fetched over TLS from whoever answers, and from a gateway. Everything else is
// asked only of a [Peer] that proves to hold the authority root which the newest
// policy names. A history that does not contain one that was seen before is
// refused with reason "behind".
//
// [Peer.Follow] fetches what there is, [Peer.Watch] and [Gateway.Watch] wait for what
// comes.
package history

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"sync/atomic"
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
	proved  identity.ProvedHead // of policy, or zero
}

// Policy is the newest policy; the zero Approved in the zero History.
func (h History) Policy() policy.Approved { return h.policy }

// Entries are all steps, as they were fetched. The caller does not change them.
func (h History) Entries() []api.HistoryEntry { return slices.Clip(h.entries) }

// Proved is the newest proof of the history's head; zero where the history was extended
// without one, as from a file.
func (h History) Proved() identity.ProvedHead { return h.proved }

// Extend approves further steps. The first of all must have the digest pin.
func (h History) Extend(pin attest.Digest, entries []api.HistoryEntry) (History, error) {
	next := History{policy: h.policy, entries: append(h.Entries(), entries...)}
	if len(next.entries) == 0 || len(next.entries) > wire.MaxHistory {
		return History{}, wire.Refuse(wire.TooLarge, "policy history: steps", len(next.entries), fmt.Sprint("1 to ", wire.MaxHistory))
	}
	steps := make([]policy.Step, len(entries))
	for i, e := range entries {
		steps[i] = policy.Step{Policy: e.Policy, Signatures: e.Signatures}
	}
	var err error
	if next.policy.OK() {
		next.policy, err = next.policy.NextAll(steps)
	} else {
		next.policy, err = policy.Replay(pin, steps)
	}
	if err != nil {
		return History{}, err
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
	presented  atomic.Pointer[x509.Certificate] // the last certificate that unverified was shown: unverified
	clock      func() time.Time
}

// LeafPolicy says, at each handshake, under which policy and for which time the
// authority's leaf is checked.
type LeafPolicy func(leaf *x509.Certificate) (policy.Approved, time.Time, error)

// Config says how an address of the authority is spoken with. All fields are required
// but Certificate.
type Config struct {
	Address    string // an https URL
	LeafPolicy LeafPolicy
	Clock      func() time.Time
	// Certificate is presented when the history is polled: a unit's, for a place of
	// those that are kept for units.
	Certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
}

// NewPeer makes a peer. It opens no connection.
func NewPeer(c Config) (*Peer, error) {
	p := &Peer{clock: c.Clock}
	var err error
	p.unverified, err = api.NewAuthority(c.Address, &tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, VerifyConnection: p.recordCertificate, GetClientCertificate: c.Certificate,
	})
	if err != nil {
		return nil, err
	}
	p.Authority, err = api.NewAuthority(c.Address, &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // replaced by the stricter check below
		VerifyConnection:   c.LeafPolicy.verifyAuthority,
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// recordCertificate keeps the certificate that should be the authority root. It proves nothing: a head
// is checked under it after its digest was compared with that of policy.
func (p *Peer) recordCertificate(state tls.ConnectionState) error {
	if n := len(state.PeerCertificates); n > 0 {
		p.presented.Store(state.PeerCertificates[n-1])
	}
	return nil
}

// Close ends idle connections.
func (p *Peer) Close() {
	p.unverified.Close()
	p.Authority.Close()
}

// verifyAuthority completes a handshake only with the authority, which presents
// its leaf and its root.
func (j LeafPolicy) verifyAuthority(state tls.ConnectionState) error {
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
// contain h is refused with "behind": it may be shown h, with [Peer.PushHistory].
func (p *Peer) Follow(ctx context.Context, h History, pin attest.Digest) (History, error) {
	return h.follow(pin, func(seen History) (api.History, error) { return p.unverified.History(ctx, len(seen.entries)) }, p.verifyHead)
}

// FollowUnproved is Follow without a proof of the head, for owners who look at an authority that may
// be behind, or have no good clock. No unit is checked under what it returns.
func (p *Peer) FollowUnproved(ctx context.Context, h History, pin attest.Digest) (History, error) {
	return h.follow(pin, func(seen History) (api.History, error) { return p.unverified.History(ctx, len(seen.entries)) },
		func(h History, _ []byte) (History, error) { return h, nil })
}

// verifyHead demands that the authority has signed the head of h, under the root that was
// presented last.
func (p *Peer) verifyHead(h History, unverified []byte) (History, error) {
	return h.verifyHead(unverified, p.presented.Load(), p.clock())
}

// Watch is Follow that waits for the next step where there is none after h, for at most
// wait. It returns h with a newer proof where none came. Where the peer has no place for
// the caller the error is one of [api.IsPollRefused]. Without a policy in h it waits for nothing.
func (p *Peer) Watch(ctx context.Context, h History, pin attest.Digest, wait time.Duration) (History, error) {
	if !h.policy.OK() {
		return p.Follow(ctx, h, pin)
	}
	return h.follow(pin, func(seen History) (api.History, error) {
		return p.unverified.PollHistory(ctx, seen.policy.Head(), wait)
	}, p.verifyHead)
}

// Gateway is a gateway's copy of the history, for a caller that knows the authority root.
// It is untrusted, as what it passes on authenticates itself.
type Gateway struct {
	Reader *api.Gateway
	Root   *x509.Certificate // of the authority
	Clock  func() time.Time
}

// Watch is [Peer.Watch] at a gateway. The history h is not empty.
func (g *Gateway) Watch(ctx context.Context, h History, pin attest.Digest, wait time.Duration) (History, error) {
	return h.follow(pin, func(seen History) (api.History, error) { return g.Reader.PollHistory(ctx, seen.policy.Head(), wait) },
		func(h History, unverified []byte) (History, error) {
			return h.verifyHead(unverified, g.Root, g.Clock())
		})
}

// follow extends h by what ask returns of the steps after a history, until that is all. It
// ends with prove, which is given the proof that came with the newest head.
func (h History) follow(pin attest.Digest, ask func(seen History) (api.History, error), prove func(History, []byte) (History, error)) (History, error) {
	for next := h; ; {
		unverified, err := ask(next)
		if err != nil {
			return History{}, fmt.Errorf("fetching the policy history: %w", err)
		}
		if unverified.From != len(next.entries) {
			return History{}, wire.Refuse(wire.Malformed, "policy history: first step", unverified.From, len(next.entries))
		}
		from := next
		if len(unverified.Entries) == 0 {
			err = from.checkComplete(unverified.Head)
		} else {
			next, err = from.Extend(pin, unverified.Entries)
		}
		switch {
		case len(unverified.Entries) > 0 && from.policy.OK() && err != nil && from.forks(pin, unverified.Entries[0]):
			return History{}, wire.Refuse(wire.Behind, "policy history: step after the newest seen", "of another history: "+err.Error(), from.policy.Head())
		case err != nil:
			return History{}, fmt.Errorf("replaying the policy history: %w", err)
		case next.policy.Head() == unverified.Head:
			return prove(next, unverified.ProvedHead)
		}
	}
}

// verifyHead demands that the authority has signed the head of h.
func (h History) verifyHead(unverified []byte, root *x509.Certificate, at time.Time) (History, error) {
	if len(unverified) == 0 {
		return History{}, wire.Refuse(wire.Behind, "policy history: proof of its head", "none", "the authority's signature")
	}
	proved, err := identity.ParseHead(unverified, h.policy, root, at)
	if err != nil {
		return History{}, fmt.Errorf("checking the head of the policy history: %w", err)
	}
	if proved.Head() != h.policy.Head() {
		return History{}, wire.Refuse(wire.Behind, "policy history: proved head", proved.Head(), h.policy.Head())
	}
	h.proved = proved
	return h, nil
}

// forks reports whether the step that a peer has after h does not follow h: the peer's
// history is another, whichever keys signed it. The peer learns that by being shown h.
func (h History) forks(pin attest.Digest, entry api.HistoryEntry) bool {
	_, err := h.Extend(pin, []api.HistoryEntry{entry})
	return err != nil
}

func (h History) checkComplete(head attest.Digest) error {
	if want := h.policy.Head(); head != want || !h.policy.OK() {
		return wire.Refuse(wire.Behind, "policy history: head", head, want)
	}
	return nil
}

// PushHistory shows the authority a history; it adopts what is newer than its own.
func (p *Peer) PushHistory(ctx context.Context, h History) error {
	if _, err := p.Authority.PushHistory(ctx, api.History{Entries: h.entries, Head: h.policy.Head()}); err != nil {
		return fmt.Errorf("pushing the newer policy history: %w", err)
	}
	return nil
}
