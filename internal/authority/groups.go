package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// validateTarget refuses a request unless it names either a task or a role in a group, and the
// policy in force has it.
func (s *snapshot) validateTarget(r api.CertificateRequest) error {
	switch p := s.approved.GroupByName(r.Group); {
	case (r.Task == "") == (r.Group == "") || (r.Group == "") != (r.Role == ""):
		return wire.Refuse(wire.BadRequest, "request: task, group, role", fmt.Sprintf("%q, %q, %q", r.Task, r.Group, r.Role), "a task, or a group and a role")
	case r.Group == "" && s.document().Tasks[r.Task] == nil:
		return wire.Refuse(wire.NotFound, "request: task", r.Task, "a task of the policy in force")
	case r.Group != "" && (p == nil || p.Group.Roles[r.Role] == nil):
		return wire.Refuse(wire.NotFound, "request: role of group "+r.Group, r.Role, "a role of the policy in force")
	case len(r.PartyKeys) > wire.MaxPartyKeys || r.Group == "" && len(r.PartyKeys) > 0 || r.Group == "" && !r.Roster.IsZero():
		return wire.Refuse(wire.BadRequest, "request: party keys, roster", fmt.Sprintf("%d, %s", len(r.PartyKeys), r.Roster), fmt.Sprintf("with a group only, at most %d keys", wire.MaxPartyKeys))
	case r.Group != "":
		return s.checkHasRoot(r.Group)
	}
	return nil
}

// keyMode returns the key mode of the request's task or group, which the policy has.
func (s *snapshot) keyMode(r api.CertificateRequest) policyfile.KeyMode {
	if r.Group != "" {
		return s.document().Groups[r.Group].KeyMode
	}
	return s.document().Tasks[r.Task].KeyMode
}

// identityFor returns the identity that a grant admits to.
func (s *snapshot) identityFor(g policy.Grant) (identity.Identity, error) {
	if g.GroupState != nil {
		return s.issuer.GroupIdentity(g.GroupState)
	}
	return s.issuer.Identity(g.Task.Name, g.Release.Name)
}

// identitiesOfGroup returns the identity of a group and those of its predecessors, approved or
// not, as far as this authority has their roots.
func (s *snapshot) identitiesOfGroup(name string) ([]identity.Identity, error) {
	p := s.approved.GroupByName(name)
	if p == nil {
		return nil, wire.Refuse(wire.NotFound, "trust: group", name, "a group of the policy in force")
	}
	if err := s.checkHasRoot(name); err != nil {
		return nil, err
	}
	var all []identity.Identity
	for ; p != nil; p = p.Predecessor {
		if id, err := s.issuer.GroupIdentity(p); err == nil {
			id.Cross = nil // clients accept no certificate under it
			all = append(all, id)
		}
	}
	return all, nil
}

// addGroup adds the roster and its approvals, which the unit shows other units of its group.
func (e *enrolment) addGroup() {
	if p := e.grant.GroupState; p != nil {
		e.report.Group, e.report.Role = p.Group.Name, e.grant.Role
		e.report.Roster, e.report.Approvals = p.Roster.Bytes(), signedStatements(p)
	}
}

func signedStatements(p *policy.GroupState) []api.SignedStatement {
	all := []api.SignedStatement{}
	for _, s := range p.SignedStatements() {
		all = append(all, api.SignedStatement(s))
	}
	return all
}

func (a *Authority) getGroup(_ http.ResponseWriter, r *http.Request) (any, error) {
	now, err := a.clock.Now()
	if err != nil {
		return nil, err
	}
	snap := a.inForce()
	p := snap.approved.GroupByName(r.PathValue("group"))
	if p == nil {
		return nil, wire.Refuse(wire.NotFound, "group", r.PathValue("group"), "a group of the policy in force")
	}
	show := func(p *policy.GroupState) *api.Group {
		own := snap.groups.RootDigest(p)
		counted := own
		if own.IsZero() {
			counted = policy.ApprovedRoot(now)(p)
		}
		agreed := p.ApprovalStatus(counted, now)
		g := &api.Group{
			Name: p.Group.Name, Identity: p.ID(), Roster: p.Roster.Bytes(), GroupRoot: own, Statements: signedStatements(p),
			Approved: agreed.Approved, Missing: agreed.Missing, Quorum: agreed.Quorum,
		}
		if !agreed.Ends.IsZero() {
			g.Ends = &agreed.Ends
		}
		return g
	}
	response := show(p)
	if p.Predecessor != nil {
		response.Continues = show(p.Predecessor)
	}
	return response, nil
}

func (a *Authority) postApprovals(w http.ResponseWriter, r *http.Request) (any, error) {
	var signed api.SignedStatement
	if err := api.ReadBody(w, r, 4*(wire.MaxStatement+wire.MaxSignature), &signed); err != nil {
		return nil, err
	}
	return a.addStatement(r.Context(), r.PathValue("group"), signed)
}

// addStatement adds a party's statement to the history and acknowledges it.
func (a *Authority) addStatement(ctx context.Context, group string, signed api.SignedStatement) (api.StatementReceipt, error) {
	if err := a.history.AddStatement(ctx, group, signed); err != nil {
		return api.StatementReceipt{}, err
	}
	return a.acknowledge(wire.Sum(signed.Statement))
}

// acknowledge signs that a statement is in the history, with the current policy head.
func (a *Authority) acknowledge(statement wire.Digest) (api.StatementReceipt, error) {
	now, err := a.clock.Now()
	if err != nil {
		return api.StatementReceipt{}, err
	}
	snap := a.inForce()
	signer, err := snap.authorityLeaf(now)
	if err != nil {
		return api.StatementReceipt{}, err
	}
	h := api.StatementReceipt{Statement: statement, Head: snap.approved.PolicyHead(), Chain: [][]byte{signer.DER, snap.issuer.AuthorityRoot()}}
	digest := sha256.Sum256(api.StatementReceiptMessage(h))
	h.Signature, err = ecdsa.SignASN1(rand.Reader, signer.Key, digest[:])
	if err != nil {
		return api.StatementReceipt{}, fmt.Errorf("signing the acknowledgement: %w", err)
	}
	return h, nil
}
