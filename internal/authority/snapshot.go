package authority

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// snapshot is the policy in force and all that follows from it. It is swapped
// whole; only its cache of certificates grows, and those are a pure function of
// policy and time.
type snapshot struct {
	approved policy.Approved
	issuer   *identity.Issuer
	entries  []api.HistoryEntry // the whole history, genesis first
	unnamed  error              // why this authority may not issue; nil when policy names it

	mu     sync.Mutex
	signer identity.Leaf            // guarded by mu: the kind-authority leaf
	shared map[string]identity.Leaf // guarded by mu, by task and release, or by group identity and role
}

// snapshot makes the snapshot of an approved history. It refuses a policy that
// names another root; one that does not name our measurement makes a snapshot
// that issues nothing.
func (a *Authority) snapshot(ctx context.Context, approved policy.Approved, entries []api.HistoryEntry) (*snapshot, error) {
	issuer, err := a.keys.Issuer(approved)
	if err != nil {
		return nil, err
	}
	return &snapshot{
		approved: approved, issuer: issuer, entries: entries,
		unnamed: a.named(ctx, approved),
		shared:  make(map[string]identity.Leaf),
	}, nil
}

// named appraises our own evidence under a policy's rules, and demands that the
// policy names our measurement.
func (a *Authority) named(ctx context.Context, approved policy.Approved) error {
	now, err := a.guard.now()
	if err != nil {
		return err
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	data := a.trustData(nonce, approved)
	evidence, hidden, err := a.verifier.Ask(ctx, a.attester, data)
	if err != nil {
		return fmt.Errorf("attesting ourselves: %w", err)
	}
	endorsed, err := a.endorse(ctx, evidence, approved)
	if err != nil {
		return err
	}
	result, err := a.verifier.Appraise(attest.Question{
		Evidence: evidence.WithEach(endorsed), ReportData: data, Rules: approved.Rules(), At: now, Secret: hidden,
	})
	if err != nil {
		return fmt.Errorf("appraising our own evidence: %w", err)
	}
	if err := approved.AdmitAuthority(result); err != nil {
		return fmt.Errorf("matching our own measurement with policy: %w", err)
	}
	return nil
}

// trustData is what our own evidence is bound to.
func (a *Authority) trustData(nonce []byte, approved policy.Approved) attest.ReportData {
	head := approved.Head()
	return attest.Bind(wire.LabelTrust, nonce, a.root[:], head[:])
}

func (s *snapshot) doc() *policy.Document { return s.approved.Document() }

// sharedLeaf gives the shared leaf of the window that holds at.
func (s *snapshot) sharedLeaf(g policy.Grant, at time.Time) (identity.Leaf, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := g.Task.Name + "/" + g.Release.Name
	if g.Pact != nil {
		name = g.Pact.ID().Hex() + "/" + g.Role
	}
	if leaf, ok := s.shared[name]; ok && at.Before(leaf.RenewAfter) {
		return leaf, nil
	}
	leaf, err := s.issuer.Shared(g, at)
	if err == nil {
		s.shared[name] = leaf
	}
	return leaf, err
}

// authorityLeaf gives the kind-authority leaf of the window that holds at.
func (s *snapshot) authorityLeaf(at time.Time) (identity.Leaf, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signer.DER != nil && at.Before(s.signer.RenewAfter) {
		return s.signer, nil
	}
	leaf, err := s.issuer.Authority(at)
	if err == nil {
		s.signer = leaf
	}
	return leaf, err
}

// certificate is what the authority serves TLS with. While the clock cannot be
// believed it is the last leaf, so that whoever asks is told so.
func (a *Authority) certificate() (*tls.Certificate, error) {
	snap := a.current.Load()
	now, err := a.guard.now()
	if err != nil {
		now = a.guard.last()
	}
	leaf, err := snap.authorityLeaf(now)
	if err != nil {
		return nil, fmt.Errorf("making the TLS leaf: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, snap.issuer.AuthorityRoot()}, PrivateKey: leaf.Key}, nil
}
