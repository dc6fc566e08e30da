package authority

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"net/url"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// At most maxTrusts trust responses are made at once: the TEE makes their evidence one after the
// other anyway. At most waitingTrusts more requests wait; addresses take turns.
const (
	maxTrusts     = 8
	waitingTrusts = 64
)

// trustNonce is the size of a client's nonce in bytes.
const trustNonce = 32

// trust returns what a client needs to trust a task, a group or one identity, with fresh evidence
// of the authority bound to the client's nonce.
func (a *Authority) trust(ctx context.Context, from netip.Addr, q url.Values) (api.TrustResponse, error) {
	nonce, err := hex.DecodeString(q.Get("nonce"))
	if err != nil || len(nonce) != trustNonce {
		return api.TrustResponse{}, wire.Refuse(wire.BadRequest, "trust: nonce", q.Get("nonce"), "64 hexadecimal digits")
	}
	asked := len(q) - 1 // parameters besides the nonce
	if q.Has("credential") {
		asked--
	}
	if asked != 1 {
		return api.TrustResponse{}, wire.Refuse(wire.BadRequest, "trust: task, group or id", "several or none", "one of them")
	}
	if err := a.history.Behind(); err != nil {
		return api.TrustResponse{}, err
	}
	current := a.history.Current()
	snap := current.Derived.(*snapshot)
	if snap.unnamed != nil {
		return api.TrustResponse{}, wire.Refuse(wire.Unavailable, "authority", snap.unnamed, "an authority that policy names")
	}
	var found []identity.Identity
	switch {
	case q.Has("task"):
		found, err = snap.identitiesOf(q.Get("task"))
	case q.Has("group"):
		found, err = snap.identitiesOfGroup(q.Get("group"))
	default:
		found, err = snap.identityOf(q.Get("id"))
	}
	if err != nil {
		return api.TrustResponse{}, err
	}
	credential, err := hex.DecodeString(q.Get("credential"))
	if err != nil || len(credential) > maxCredential {
		return api.TrustResponse{}, wire.Refuse(wire.BadRequest, "trust: credential", len(q.Get("credential")), "at most 2048 hexadecimal digits")
	}
	evidence, err := a.evidence(ctx, from, a.trustData(nonce, snap.approved), credential)
	if err != nil {
		return api.TrustResponse{}, err
	}
	response := api.TrustResponse{Authority: snap.issuer.AuthorityRoot(), History: a.proveHistory(current, 0), Evidence: evidence}
	for _, id := range found {
		response.Identities = append(response.Identities, api.TrustIdentity{
			Task: id.Task, Release: id.Release, Group: id.Group, ID: id.ID, Root: id.Root, Cross: id.Cross,
		})
	}
	return response, nil
}

// identitiesOf returns the identities of all releases of a task.
func (s *snapshot) identitiesOf(task string) ([]identity.Identity, error) {
	t := s.document().Tasks[task]
	if t == nil {
		return nil, wire.Refuse(wire.NotFound, "trust: task", task, "a task of the policy in force")
	}
	var all []identity.Identity
	for _, release := range t.ReleaseNames() {
		id, err := s.issuer.Identity(task, release)
		if err != nil {
			return nil, err
		}
		all = append(all, id)
	}
	return all, nil
}

// identityOf returns the one identity with an id.
func (s *snapshot) identityOf(text string) ([]identity.Identity, error) {
	want, err := wire.ParseDigest(text)
	if err != nil {
		return nil, err
	}
	for _, task := range s.document().TaskNames() {
		all, err := s.identitiesOf(task)
		if err != nil {
			return nil, err
		}
		for _, id := range all {
			if id.ID == want {
				return []identity.Identity{id}, nil
			}
		}
	}
	return nil, wire.Refuse(wire.NotFound, "trust: identity", want, "an identity of the policy in force")
}

// maxCredential bounds a credential in bytes: a credential for a 3072-bit RSA key needs less than
// half of it.
const maxCredential = 1024

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
