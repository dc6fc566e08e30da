// Package history follows the policy history of an authority, for all programs that pin its
// genesis digest: units, clients, and tools of owners.
//
// A [History] is authenticated by the owners' signatures back to the pinned genesis, and by
// the authority's signature over its head ([identity.ProvedHead]): a step that owners signed
// but that is not in force yet has no effect. So a history may be fetched over unauthenticated
// TLS, and from a gateway. All other requests go only to a [Peer] that proves to have the
// authority root that the newest policy names. A history that does not contain the newest
// history seen before is refused with "behind".
//
// [Peer.Follow] fetches the existing steps. [Peer.Watch] and [Gateway.Watch] also wait for new
// steps.
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

// History is a verified policy history. It is immutable; the zero History is empty.
type History struct {
	policy  policy.Approved
	entries []api.HistoryEntry
	proved  identity.ProvedHead // proof of the head of policy, or zero
}

// Policy returns the newest policy, or the zero Approved for the zero History.
func (h History) Policy() policy.Approved { return h.policy }

// Entries returns all steps as they were fetched. The caller must not change them.
func (h History) Entries() []api.HistoryEntry { return slices.Clip(h.entries) }

// Proved returns the newest proof of the history's head. It is zero if the history was extended
// without a proof, for example from a file.
func (h History) Proved() identity.ProvedHead { return h.proved }

// Extend verifies further steps and returns the history with them. The first step of the whole
// history must have the digest pin.
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
	if next.policy.Genuine() {
		next.policy, err = next.policy.NextAll(steps)
	} else {
		next.policy, err = policy.Replay(pin, steps)
	}
	if err != nil {
		return History{}, err
	}
	return next, nil
}

// Peer is a client of the authority at one address. The caller of [NewPeer] closes it.
type Peer struct {
	// Authority connects only to a server with a kind-authority certificate under the root
	// that the policy names.
	Authority *api.Authority
	// unverified connects to any TLS server. It fetches only the history.
	unverified *api.Authority
	presented  atomic.Pointer[x509.Certificate] // last certificate of the newest chain that unverified received; unverified
	clock      func() time.Time
}

// LeafPolicy returns, at each handshake, the policy and the time for verifying the authority's
// leaf.
type LeafPolicy func(leaf *x509.Certificate) (policy.Approved, time.Time, error)

// Config configures a peer. All fields but Certificate are required.
type Config struct {
	Address    string // https URL
	LeafPolicy LeafPolicy
	Clock      func() time.Time
	// Certificate returns the client certificate for polls of the history: a unit's
	// certificate. Servers reserve places for such polls.
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
		InsecureSkipVerify: true, // VerifyConnection is stricter
		VerifyConnection:   c.LeafPolicy.verifyAuthority,
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// recordCertificate stores the last certificate of the chain, which should be the authority
// root. It verifies nothing: later, Prove verifies a head under this certificate only if
// its digest is the one in the policy.
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

// verifyAuthority accepts a handshake only with the authority, which presents its leaf and its
// root.
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

// Follow fetches and verifies the steps after h. It refuses, with "behind", a peer whose history
// does not contain h; [Peer.PushHistory] can send h to such a peer.
func (p *Peer) Follow(ctx context.Context, h History, pin attest.Digest) (History, error) {
	return h.follow(pin, func(seen History) (api.History, error) { return p.unverified.History(ctx, len(seen.entries)) }, p.verifyHead)
}

// FollowUnproved is Follow without a proof of the head. It is for owners who inspect an
// authority that may be behind, or whose own clock is inaccurate. Its result must not be used to
// verify units.
func (p *Peer) FollowUnproved(ctx context.Context, h History, pin attest.Digest) (History, error) {
	return h.follow(pin, func(seen History) (api.History, error) { return p.unverified.History(ctx, len(seen.entries)) },
		func(h History, _ []byte) (History, error) { return h, nil })
}

// verifyHead requires the authority's signature over the head of h, under the root that was
// presented last.
func (p *Peer) verifyHead(h History, unverified []byte) (History, error) {
	return h.Prove(unverified, p.presented.Load(), p.clock())
}

// Watch is Follow, but if there is no step after h, it waits for the next step for at most
// wait. Without a new step it returns h with a newer proof. If the peer accepts no further poll,
// [api.IsPollRefused] reports true for the error. If h is empty, Watch does not wait.
func (p *Peer) Watch(ctx context.Context, h History, pin attest.Digest, wait time.Duration) (History, error) {
	if !h.policy.Genuine() {
		return p.Follow(ctx, h, pin)
	}
	return h.follow(pin, func(seen History) (api.History, error) {
		return p.unverified.PollHistory(ctx, seen.policy.PolicyHead(), wait)
	}, p.verifyHead)
}

// Gateway reads a gateway's copy of the history, for a caller that knows the authority root. The
// gateway is untrusted: the signatures in the history authenticate it.
type Gateway struct {
	Reader *api.Gateway
	Root   *x509.Certificate // authority root
	Clock  func() time.Time
}

// Watch is [Peer.Watch] at a gateway. The history h must not be empty.
func (g *Gateway) Watch(ctx context.Context, h History, pin attest.Digest, wait time.Duration) (History, error) {
	return h.follow(pin, func(seen History) (api.History, error) {
		return g.Reader.PollHistory(ctx, seen.policy.PolicyHead(), wait)
	},
		func(h History, unverified []byte) (History, error) {
			return h.Prove(unverified, g.Root, g.Clock())
		})
}

// FollowUnproved is [Peer.FollowUnproved] at a gateway, with the proof that came along, for a
// caller that learns the authority root afterwards and then calls [History.Prove]. It needs
// Reader alone.
func (g *Gateway) FollowUnproved(ctx context.Context, h History, pin attest.Digest) (next History, proof []byte, err error) {
	next, err = h.follow(pin, func(seen History) (api.History, error) {
		if !seen.policy.Genuine() {
			return g.Reader.History(ctx, 0)
		}
		return g.Reader.PollHistory(ctx, seen.policy.PolicyHead(), 0) // by its head: a gateway that does not have it is behind
	},
		func(h History, unverified []byte) (History, error) {
			proof = unverified
			return h, nil
		})
	return next, proof, err
}

// follow extends h by the steps that fetch returns, until there are no more. At the end it
// calls prove with the extended history and the unverified proof of the newest head.
func (h History) follow(pin attest.Digest, fetch func(seen History) (api.History, error), prove func(History, []byte) (History, error)) (History, error) {
	for next := h; ; {
		unverified, err := fetch(next)
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
		case len(unverified.Entries) > 0 && from.policy.Genuine() && err != nil && from.forks(pin, unverified.Entries[0]):
			return History{}, wire.Refuse(wire.Behind, "policy history: step after the newest seen", "a step of another history: "+err.Error(), from.policy.PolicyHead())
		case err != nil:
			return History{}, fmt.Errorf("replaying the policy history: %w", err)
		case next.policy.PolicyHead() == unverified.Head:
			return prove(next, unverified.ProvedHead)
		}
	}
}

// Prove requires the authority's signature over the head of h, and returns h with it. It refuses
// with "behind" a missing proof and that of another head, and otherwise as [identity.ParseHead].
func (h History) Prove(unverified []byte, root *x509.Certificate, at time.Time) (History, error) {
	if len(unverified) == 0 {
		return History{}, wire.Refuse(wire.Behind, "policy history: size of the proof of its head", 0, "the authority's signature")
	}
	proved, err := identity.ParseHead(unverified, h.policy, root, at)
	if err != nil {
		return History{}, fmt.Errorf("checking the head of the policy history: %w", err)
	}
	if proved.PolicyHead() != h.policy.PolicyHead() {
		return History{}, wire.Refuse(wire.Behind, "policy history: proved head", proved.PolicyHead(), h.policy.PolicyHead())
	}
	h.proved = proved
	return h, nil
}

// forks reports whether the step that a peer has after h does not extend h. Then the peer has a
// different history, whichever keys signed it. The peer detects this when it receives h.
func (h History) forks(pin attest.Digest, entry api.HistoryEntry) bool {
	_, err := h.Extend(pin, []api.HistoryEntry{entry})
	return err != nil
}

func (h History) checkComplete(head attest.Digest) error {
	if want := h.policy.PolicyHead(); head != want || !h.policy.Genuine() {
		return wire.Refuse(wire.Behind, "policy history: head", head, want)
	}
	return nil
}

// PushHistory sends a history to the authority, which adopts the steps that it does not have.
func (p *Peer) PushHistory(ctx context.Context, h History) error {
	if _, err := p.Authority.PushHistory(ctx, api.History{Entries: h.entries, Head: h.policy.PolicyHead()}); err != nil {
		return fmt.Errorf("pushing the newer policy history: %w", err)
	}
	return nil
}
