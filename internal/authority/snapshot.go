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
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// snapshot is the policy in force and all that follows from it. It is swapped
// whole; only its cache of certificates grows, and those are a pure function of
// policy and time.
type snapshot struct {
	approved policy.Approved
	issuer   *identity.Issuer
	unnamed  error // why this authority may not issue; nil when policy names it
	groups   sealed.GroupRoots
	spread   time.Duration // over which units renew that the last step concerns

	mu     sync.Mutex
	proved proved                   // guarded by mu: the newest proved head
	signer identity.Leaf            // guarded by mu: the kind-authority leaf
	shared map[string]identity.Leaf // guarded by mu, by task and release, or by group identity and role
}

// snapshot makes the snapshot of an approved history. It refuses a history that
// does not start from the draft of our root, and a policy that names another root;
// one that does not name our measurement makes a snapshot that issues nothing.
func (a *Authority) snapshot(ctx context.Context, approved policy.Approved) (*snapshot, error) {
	if err := a.root.CheckDraft(approved); err != nil {
		return nil, err
	}
	own, unnamed := a.attestSelf(ctx, approved)
	if unnamed == nil {
		unnamed = a.checkNamed(approved, own)
	}
	groups := a.groups.FindRoots(ctx, approved, own, unnamed)
	issuer, err := a.root.Keys.Issuer(approved, groups.All...)
	if err != nil {
		return nil, err
	}
	live, err := a.countLiveUnits(ctx)
	if err != nil {
		return nil, err
	}
	return &snapshot{
		approved: approved, issuer: issuer,
		unnamed: unnamed, groups: groups, spread: spreadOf(live),
		shared: make(map[string]identity.Leaf),
	}, nil
}

// Renewals that a step makes necessary are spread so that no more than so many a second
// come, over a second at least. The longest spread is there because any party that writes to the
// database can change the number of units.
const (
	renewalsASecond = 500
	leastSpread     = time.Second
	mostSpread      = 10 * time.Minute
)

func spreadOf(live int) time.Duration {
	live = min(live, int(mostSpread/time.Second)*renewalsASecond)
	return max(leastSpread, time.Duration(live)*time.Second/renewalsASecond)
}

// countLiveUnits is the number of units that were issued to and have not left or ended.
func (a *Authority) countLiveUnits(ctx context.Context) (int, error) {
	now, err := a.clock.Now()
	if err != nil {
		now = a.clock.LastNow() // an estimate is enough
	}
	return a.store.CountUnits(ctx, now)
}

// attestSelf makes our own evidence, with endorsements. The question is to be
// appraised under rules.
func (a *Authority) attestSelf(ctx context.Context, approved policy.Approved) (attest.Question, error) {
	now, err := a.clock.Now()
	if err != nil {
		return attest.Question{}, err
	}
	nonce := make([]byte, 32)
	rand.Read(nonce)
	data := a.trustData(nonce, approved)
	evidence, hidden, err := a.verifier.RequestEvidence(ctx, a.attester, data)
	if err != nil {
		return attest.Question{}, fmt.Errorf("attesting ourselves: %w", err)
	}
	endorsed, err := a.endorseEvidence(ctx, evidence, approved, nil)
	if err != nil {
		return attest.Question{}, err
	}
	return attest.Question{Evidence: evidence.WithEach(endorsed), ReportData: data, At: now, Secret: hidden}, nil
}

// checkNamed appraises our own evidence under a policy's rules, and demands that the
// policy names our measurement.
func (a *Authority) checkNamed(approved policy.Approved, own attest.Question) error {
	own.Rules = approved.Rules()
	result, err := a.verifier.Appraise(own)
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
	head := approved.PolicyHead()
	return attest.BindReportData(wire.LabelTrust, nonce, a.root.Digest[:], head[:])
}

func (s *snapshot) document() *policyfile.Document { return s.approved.Document() }

// sharedLeaf returns the shared leaf of the window that at is in.
func (s *snapshot) sharedLeaf(g policy.Grant, at time.Time) (identity.Leaf, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := g.Task.Name + "/" + g.Release.Name
	if g.GroupState != nil {
		name = g.GroupState.ID().Hex() + "/" + g.Role
	}
	if leaf, ok := s.shared[name]; ok && at.Before(leaf.RenewAfter) {
		return leaf, nil
	}
	leaf, err := s.issuer.SharedLeaf(g, at)
	if err == nil {
		s.shared[name] = leaf
	}
	return leaf, err
}

// authorityLeaf returns the kind-authority leaf of the window that at is in.
func (s *snapshot) authorityLeaf(at time.Time) (identity.Leaf, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signer.DER != nil && at.Before(s.signer.RenewAfter) {
		return s.signer, nil
	}
	leaf, err := s.issuer.AuthorityLeaf(at)
	if err == nil {
		s.signer = leaf
	}
	return leaf, err
}

// certificate returns the certificate that the authority serves TLS with. While the clock
// cannot be believed it is the last leaf, so that a client gets that refusal.
func (a *Authority) certificate() (*tls.Certificate, error) {
	snap := a.inForce()
	now, err := a.clock.Now()
	if err != nil {
		now = a.clock.LastNow()
	}
	leaf, err := snap.authorityLeaf(now)
	if err != nil {
		return nil, fmt.Errorf("making the TLS leaf: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.DER, snap.issuer.AuthorityRoot()}, PrivateKey: leaf.Key}, nil
}
