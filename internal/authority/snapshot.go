package authority

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/sealed"
	"github.com/cohort-tee/cohort/internal/trustresponse"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// snapshot is the policy in force and the state derived from it. It is replaced as a whole. Only
// its caches of signed values grow, and those follow from policy and time.
type snapshot struct {
	approved policy.Approved
	issuer   *identity.Issuer
	unnamed  error // why this authority may not issue; nil when policy names it
	groups   sealed.GroupRoots
	spread   time.Duration // over which units spread the renewals that the last step requires

	kept   atomic.Pointer[ownEvidence] // evidence that clients share
	making singleflight.Group          // of kept

	mu     sync.Mutex
	proved proved                   // guarded by mu: the newest proved head
	signer identity.Leaf            // guarded by mu: the kind-authority leaf
	shared map[string]identity.Leaf // guarded by mu, by task and release, or by group identity and role
}

// ownEvidence is evidence of the authority itself, and its statement about it.
type ownEvidence struct {
	evidence  json.RawMessage
	statement []byte
	at        time.Time
	signer    []byte // the leaf that signed the statement, DER
}

// snapshot makes the snapshot of an approved history. It refuses a history that does not start
// from the draft of this root, and a policy that names a different root. Under a policy that does
// not name this measurement the snapshot issues nothing.
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

// Renewals that a step requires are spread over at least a second, so that no more than
// renewalsASecond arrive each second. mostSpread is a bound because any party with write access
// to the database can change the number of units.
const (
	renewalsASecond = 500
	leastSpread     = time.Second
	mostSpread      = 10 * time.Minute
)

func spreadOf(live int) time.Duration {
	live = min(live, int(mostSpread/time.Second)*renewalsASecond)
	return max(leastSpread, time.Duration(live)*time.Second/renewalsASecond)
}

// countLiveUnits returns the number of units with a certificate that have not left or expired.
func (a *Authority) countLiveUnits(ctx context.Context) (int, error) {
	now, err := a.clock.Now()
	if err != nil {
		now = a.clock.LastNow() // an estimate is enough
	}
	return a.store.CountUnits(ctx, now)
}

// attestSelf makes the authority's own evidence, with endorsements. The caller sets the rules of
// the question before it appraises it.
func (a *Authority) attestSelf(ctx context.Context, approved policy.Approved) (attest.Question, error) {
	now, err := a.clock.Now()
	if err != nil {
		return attest.Question{}, err
	}
	nonce := make([]byte, api.TrustNonce)
	rand.Read(nonce)
	data := trustresponse.Claim{Nonce: nonce, Root: a.root.Digest, Head: approved.PolicyHead()}.ReportData()
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

// checkNamed appraises the authority's own evidence under a policy's rules, and demands that the
// policy names its measurement.
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

func (s *snapshot) document() *policyfile.Document { return s.approved.Document() }

// sharedLeaf returns the shared leaf of the renewal window that contains at.
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

// authorityLeaf returns the kind-authority leaf of the renewal window that contains at.
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

// certificate returns the authority's TLS certificate. While the clock is refused it returns the
// last leaf, so that clients can still connect and receive that refusal.
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
