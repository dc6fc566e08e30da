package authority

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxGroupRootBody bounds the body of a request for the root of a group, in bytes: a nonce, a
// credential and a digest.
const maxGroupRootBody = 4 << 10

func (a *Authority) postGroupRoot(w http.ResponseWriter, r *http.Request) (any, error) {
	var request api.GroupRootRequest
	if err := api.ReadBody(w, r, maxGroupRootBody, &request); err != nil {
		return nil, err
	}
	return a.groupRoot(r.Context(), limit.AddressOf(r.RemoteAddr), r.PathValue("group"), request)
}

// groupRoot returns the root of a roster in force, with fresh evidence of the authority itself.
// Parties appraise it by the roster's reference values before they approve the roster.
func (a *Authority) groupRoot(ctx context.Context, from netip.Addr, group string, r api.GroupRootRequest) (api.GroupRoot, error) {
	if len(r.Nonce) != api.TrustNonce || len(r.Credential) > api.MaxCredential {
		return api.GroupRoot{}, wire.Refuse(wire.BadRequest, "group root: nonce, credential in bytes", fmt.Sprint(len(r.Nonce), ", ", len(r.Credential)), fmt.Sprint(api.TrustNonce, ", at most ", api.MaxCredential))
	}
	if err := a.history.Behind(); err != nil {
		return api.GroupRoot{}, err
	}
	snap := a.inForce()
	p := snap.approved.GroupByName(group)
	if p == nil {
		return api.GroupRoot{}, wire.Refuse(wire.NotFound, "group", group, "a group of the policy in force")
	}
	if !r.Roster.IsZero() && r.Roster != p.ID() {
		if p = p.Predecessor; p == nil || r.Roster != p.ID() {
			return api.GroupRoot{}, wire.Refuse(wire.StaleRoster, "group "+group+": roster", r.Roster, "one in force")
		}
	}
	keys, err := snap.groups.KeysOf(p)
	if err != nil {
		return api.GroupRoot{}, err
	}
	id, err := snap.issuer.GroupIdentity(p)
	if err != nil {
		return api.GroupRoot{}, err
	}
	evidence, err := a.evidence(ctx, from, identity.GroupRootData(r.Nonce, p.ID(), keys.RootDigest()), r.Credential)
	if err != nil {
		return api.GroupRoot{}, err
	}
	return api.GroupRoot{Roster: p.ID(), Root: id.Root, Evidence: evidence}, nil
}

// reportSigner returns the leaf that signs the reports for a grant: in a group a leaf under the
// group's root, for a task the leaf that the authority serves TLS with. The chain ends with the
// authority root. root is the digest of the group's root, zero outside groups.
func (e *enrolment) reportSigner() (leaf identity.Leaf, chain [][]byte, root wire.Digest, err error) {
	if p := e.grant.GroupState; p != nil {
		leaf, err = e.snap.issuer.GroupAuthorityLeaf(p, e.at)
		return leaf, [][]byte{leaf.DER, e.identity.Root, e.snap.issuer.AuthorityRoot()}, e.snap.groups.RootDigest(p), err
	}
	leaf, err = e.snap.authorityLeaf(e.at)
	return leaf, [][]byte{leaf.DER, e.snap.issuer.AuthorityRoot()}, root, err
}

// unservedGroups lists the groups of which this authority has no root, and why, for example
// because the roster does not name it.
func (s *snapshot) unservedGroups() (all []string) {
	if s.unnamed != nil {
		return nil // it issues nothing
	}
	for _, name := range s.document().GroupNames() {
		p := s.approved.GroupByName(name)
		if _, err := s.groups.KeysOf(p); err != nil {
			all = append(all, fmt.Sprintf("no root of group %s, roster %s: %v", name, p.ID(), s.groups.Refusal(p)))
		}
	}
	return all
}

// checkHasRoot refuses, with "group-authority", a request for a group when this authority has no
// root for any of its rosters in force.
func (s *snapshot) checkHasRoot(group string) error {
	var refusals []error
	for p := s.approved.GroupByName(group); p != nil; p = p.Predecessor {
		_, err := s.groups.KeysOf(p)
		if err == nil {
			return nil
		}
		refusals = append(refusals, err)
	}
	return errors.Join(refusals...)
}
