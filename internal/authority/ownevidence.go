package authority

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/trustresponse"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Evidence that many clients share is made at most once in sharedAge, and caches keep responses
// with it as long again (docs/spec/trust.md, section 7).
const (
	sharedAge   = time.Minute
	sharedTrust = "public, max-age=60"
	sharedWait  = 30 * time.Second // for the TEE, and the vendors' documents
)

// evidence returns fresh evidence of the authority, with the secret of the client's credential if
// the client sent one, and with the endorsements that a client needs to appraise it.
func (a *Authority) evidence(ctx context.Context, from netip.Addr, data attest.ReportData, credential []byte) (json.RawMessage, error) {
	if err := a.trusts.Acquire(ctx, from, ""); err != nil {
		return nil, err
	}
	defer a.trusts.Release()
	evidence, err := attest.AttestWithCredential(ctx, a.attester, data, credential)
	if err != nil {
		return nil, fmt.Errorf("attesting ourselves: %w", err)
	}
	endorsed, err := a.endorseEvidence(ctx, evidence, a.inForce().approved, nil)
	if err != nil {
		return nil, err
	}
	return evidence.WithEach(endorsed).MarshalJSON()
}

// statedEvidence makes evidence for a client's nonce and credential, or for the time if there is
// no nonce, and signs a statement about it.
func (a *Authority) statedEvidence(ctx context.Context, from netip.Addr, snap *snapshot, q api.TrustQuery) (*ownEvidence, error) {
	now, err := a.clock.Now()
	if err != nil {
		return nil, err
	}
	signer, err := snap.authorityLeaf(now)
	if err != nil {
		return nil, err
	}
	claim := trustresponse.Claim{
		Genesis: snap.approved.Genesis(), Root: a.root.Digest, Head: snap.approved.PolicyHead(), Steps: uint64(len(snap.approved.Heads())), At: now, Nonce: q.Nonce,
	}
	made := &ownEvidence{at: now, signer: signer.DER}
	if made.evidence, err = a.evidence(ctx, from, claim.ReportData(), q.Credential); err != nil {
		return nil, err
	}
	claim.Evidence = wire.Sum(made.evidence)
	made.statement, err = trustresponse.SignStatement(claim, signer)
	return made, err
}

// sharedEvidence returns evidence of a snapshot for all clients that sent no nonce. One is made at a
// time. Requests that wait for it have a place among those being served, until their context ends.
func (a *Authority) sharedEvidence(ctx context.Context, snap *snapshot) (*ownEvidence, error) {
	if kept, err := a.keptEvidence(snap); kept != nil || err != nil {
		return kept, err
	}
	made := snap.making.DoChan("", func() (any, error) {
		if kept, err := a.keptEvidence(snap); kept != nil || err != nil {
			return kept, err
		}
		// It is for all requests that wait, so it goes on when the first of them ends.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sharedWait)
		defer cancel()
		made, err := a.statedEvidence(ctx, netip.Addr{}, snap, api.TrustQuery{}) // in its own turn, not in that of a client's address
		if err == nil {
			snap.kept.Store(made)
		}
		return made, err
	})
	select {
	case result := <-made:
		if result.Err != nil {
			return nil, result.Err
		}
		return result.Val.(*ownEvidence), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// keptEvidence returns the evidence that was made last, or nil if it is too old or of another leaf.
func (a *Authority) keptEvidence(snap *snapshot) (*ownEvidence, error) {
	now, err := a.clock.Now()
	if err != nil {
		return nil, err
	}
	signer, err := snap.authorityLeaf(now)
	if err != nil {
		return nil, err
	}
	if kept := snap.kept.Load(); kept != nil && now.Sub(kept.at) < sharedAge && bytes.Equal(kept.signer, signer.DER) {
		return kept, nil
	}
	return nil, nil
}
