package authority

import (
	"context"
	"net/netip"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// trust returns what a client needs to trust a task, a group or one identity: with fresh evidence
// of the authority that is bound to the client's nonce, or with evidence that many clients share.
func (a *Authority) trust(ctx context.Context, from netip.Addr, q api.TrustQuery) (api.TrustResponse, error) {
	if err := a.history.Behind(); err != nil {
		return api.TrustResponse{}, err
	}
	current := a.history.Current()
	snap := current.Derived.(*snapshot)
	if snap.unnamed != nil {
		return api.TrustResponse{}, wire.Refuse(wire.Unavailable, "authority", snap.unnamed, "an authority that policy names")
	}
	var found []identity.Identity
	var err error
	switch {
	case q.Task != "":
		found, err = snap.identitiesOf(q.Task)
	case q.Group != "":
		found, err = snap.identitiesOfGroup(q.Group)
	default:
		found, err = snap.identityOf(q.ID)
	}
	if err != nil {
		return api.TrustResponse{}, err
	}
	var made *ownEvidence
	if q.Nonce != nil {
		made, err = a.statedEvidence(ctx, from, snap, q)
	} else {
		made, err = a.sharedEvidence(ctx, snap)
	}
	if err != nil {
		return api.TrustResponse{}, err
	}
	response := api.TrustResponse{
		Authority: snap.issuer.AuthorityRoot(),
		History:   a.proveHistory(current, len(snap.approved.Heads())), // the head alone: clients page through the history
		Evidence:  made.evidence, Statement: made.statement,
	}
	for _, id := range found {
		response.Identities = append(response.Identities, api.TrustIdentity{Task: id.Task, Release: id.Release, Group: id.Group, ID: id.ID, Root: id.Root, Cross: id.Cross})
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
func (s *snapshot) identityOf(want wire.Digest) ([]identity.Identity, error) {
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
