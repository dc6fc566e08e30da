package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
	"golang.org/x/time/rate"
)

// asked refuses a request that names neither a task nor a role in a group of the
// policy, or both.
func (s *snapshot) asked(r api.CertificateRequest) error {
	switch p := s.approved.Pact(r.Group); {
	case (r.Task == "") == (r.Group == "") || (r.Group == "") != (r.Role == ""):
		return wire.Refuse(wire.BadRequest, "request: task, group, role", fmt.Sprintf("%q, %q, %q", r.Task, r.Group, r.Role), "a task, or a group and a role")
	case r.Group == "" && s.doc().Tasks[r.Task] == nil:
		return wire.Refuse(wire.NotFound, "request: task", r.Task, "a task of the policy in force")
	case r.Group != "" && (p == nil || p.Group.Roles[r.Role] == nil):
		return wire.Refuse(wire.NotFound, "request: role of group "+r.Group, r.Role, "a role of the policy in force")
	case len(r.PartyKeys) > wire.MaxPartyKeys || r.Group == "" && len(r.PartyKeys) > 0 || r.Group == "" && !r.Roster.IsZero():
		return wire.Refuse(wire.BadRequest, "request: party keys, roster", fmt.Sprintf("%d, %s", len(r.PartyKeys), r.Roster), fmt.Sprintf("with a group only, at most %d keys", wire.MaxPartyKeys))
	case r.Group != "":
		return s.hasRoot(r.Group)
	}
	return nil
}

// keyMode is that of what a request asks for, which the policy has.
func (s *snapshot) keyMode(r api.CertificateRequest) policyfile.KeyMode {
	if r.Group != "" {
		return s.doc().Groups[r.Group].KeyMode
	}
	return s.doc().Tasks[r.Task].KeyMode
}

// identityFor is the identity that a grant is for.
func (s *snapshot) identityFor(g policy.Grant) (identity.Identity, error) {
	if g.Pact != nil {
		return s.issuer.GroupIdentity(g.Pact)
	}
	return s.issuer.Identity(g.Task.Name, g.Release.Name)
}

// identitiesOfGroup are the identity of a group and of the one it continues,
// agreed on or not, as far as this authority has their roots.
func (s *snapshot) identitiesOfGroup(name string) ([]identity.Identity, error) {
	p := s.approved.Pact(name)
	if p == nil {
		return nil, wire.Refuse(wire.NotFound, "trust: group", name, "a group of the policy in force")
	}
	if err := s.hasRoot(name); err != nil {
		return nil, err
	}
	var all []identity.Identity
	for ; p != nil; p = p.Before {
		if id, err := s.issuer.GroupIdentity(p); err == nil {
			id.Cross = nil // no client accepts anything under it
			all = append(all, id)
		}
	}
	return all, nil
}

// addGroup adds what the unit shows others of its group.
func (e *enrolment) addGroup() {
	if p := e.grant.Pact; p != nil {
		e.report.Group, e.report.Role = p.Group.Name, e.grant.Role
		e.report.Roster, e.report.Approvals = p.Roster.Bytes(), saidOf(p)
	}
}

func saidOf(p *policy.Pact) []api.SignedStatement {
	all := []api.SignedStatement{}
	for _, s := range p.Said() {
		all = append(all, api.SignedStatement(s))
	}
	return all
}

func (a *Authority) getGroup(_ http.ResponseWriter, r *http.Request) (any, error) {
	now, err := a.clock.Now()
	if err != nil {
		return nil, err
	}
	snap := a.current.Load()
	p := snap.approved.Pact(r.PathValue("group"))
	if p == nil {
		return nil, wire.Refuse(wire.NotFound, "group", r.PathValue("group"), "a group of the policy in force")
	}
	show := func(p *policy.Pact) *api.Group {
		own := snap.groups.root(p)
		counted := own
		if own.IsZero() {
			counted = policy.ApprovedRoot(now)(p)
		}
		agreed := p.Agreement(counted, now)
		g := &api.Group{
			Name: p.Group.Name, Identity: p.ID(), Roster: p.Roster.Bytes(), GroupRoot: own, Statements: saidOf(p),
			Approved: agreed.Approved, Missing: agreed.Missing, Quorum: agreed.Quorum,
		}
		if !agreed.Ends.IsZero() {
			g.Ends = &agreed.Ends
		}
		return g
	}
	answer := show(p)
	if p.Before != nil {
		answer.Continues = show(p.Before)
	}
	return answer, nil
}

func (a *Authority) postApprovals(w http.ResponseWriter, r *http.Request) (any, error) {
	var said api.SignedStatement
	if err := api.ReadBody(w, r, 4*(wire.MaxStatement+wire.MaxSignature), &said); err != nil {
		return nil, err
	}
	return a.hear(r.Context(), r.PathValue("group"), said)
}

// hear takes a party's statement into the history. When it returns, the
// statement is on disk and no certificate is issued against it.
func (a *Authority) hear(ctx context.Context, group string, said api.SignedStatement) (api.StatementReceipt, error) {
	s, err := policy.ParseStatement(said.Statement)
	if err != nil {
		return api.StatementReceipt{}, err
	}
	now, err := a.clock.Now()
	if err != nil {
		return api.StatementReceipt{}, err
	}
	p := a.current.Load().approved.PactOf(s.Group)
	switch {
	case p != nil && p.Group.Name != group:
		return api.StatementReceipt{}, wire.Refuse(wire.WrongGroup, "statement: group", p.Group.Name, group)
	case p != nil && p.Knows(said.Statement):
		return a.acknowledge(wire.Sum(said.Statement)) // the party asks again
	}
	if !s.Withdraws && !now.Before(s.NotAfter) {
		return api.StatementReceipt{}, wire.Refuse(wire.Expired, "statement: not_after", s.NotAfter.UTC(), "after "+now.UTC().String())
	}
	if p != nil && !p.Ends(s) {
		if err := a.statements.take(p, s, said.Signature, now); err != nil {
			return api.StatementReceipt{}, err
		}
	}
	if err := a.adopt(ctx, api.HistoryEntry{Policy: said.Statement, Signatures: []string{said.Signature}}); err != nil {
		return api.StatementReceipt{}, err
	}
	a.log.Info("statement heard", "group", group, "party", s.Party, "withdraws", s.Withdraws, "number", s.Number)
	return a.acknowledge(wire.Sum(said.Statement))
}

// How often a key makes statements: each is a step that every unit and client of the
// trust domain fetches.
const (
	statementBurst = 16
	statementEvery = time.Minute
)

// statementRates are the token buckets of the parties' keys. There are as many as
// keys have signed a statement of a group of theirs.
type statementRates struct {
	mu   sync.Mutex
	keys map[attest.Digest]*rate.Limiter // guarded by mu
}

// take counts a statement of a party's key. It refuses as the history would do what
// that key has not signed, so that nobody else uses its bucket up, and with "rate"
// more statements than a key may make.
func (r *statementRates) take(p *policy.Pact, s policy.Statement, signature string, at time.Time) error {
	key, err := sshsig.Verify(signature, s.Namespace(), s.Bytes())
	if err != nil {
		return err
	}
	if sshsig.KeyDigest(key) != s.Key {
		return wire.Refuse(wire.NotOwner, "statement: key", sshsig.KeyDigest(key), s.Key)
	}
	if _, err := p.Statement(s.Key, s.GroupRoot); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keys[s.Key] == nil {
		if r.keys == nil {
			r.keys = map[attest.Digest]*rate.Limiter{}
		}
		r.keys[s.Key] = rate.NewLimiter(rate.Every(statementEvery), statementBurst)
	}
	if !r.keys[s.Key].AllowN(at, 1) {
		return wire.Refuse(wire.TooMany, "statements of one key", "more", fmt.Sprint(statementBurst, " at once, one each ", statementEvery))
	}
	return nil
}

// acknowledge signs that a statement is in the history up to its head.
func (a *Authority) acknowledge(statement wire.Digest) (api.StatementReceipt, error) {
	now, err := a.clock.Now()
	if err != nil {
		return api.StatementReceipt{}, err
	}
	snap := a.current.Load()
	signer, err := snap.authorityLeaf(now)
	if err != nil {
		return api.StatementReceipt{}, err
	}
	h := api.StatementReceipt{Statement: statement, Head: snap.approved.Head(), Chain: [][]byte{signer.DER, snap.issuer.AuthorityRoot()}}
	digest := sha256.Sum256(api.StatementReceiptMessage(h))
	h.Signature, err = ecdsa.SignASN1(rand.Reader, signer.Key, digest[:])
	if err != nil {
		return api.StatementReceipt{}, fmt.Errorf("signing the acknowledgement: %w", err)
	}
	return h, nil
}
