package authority

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/limit"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// groupRoots are the keys of the rosters that a policy has in force and that name
// this authority, and of each other roster why this authority has no keys. Who
// has the root secret of the domain has none of them: each is drawn in the TEE of an
// authority that the roster names, and sealed to those.
type groupRoots struct {
	keys    []*identity.GroupKeys
	refused map[wire.Digest]error // by roster
}

// of finds the keys of a roster, or refuses with "group-authority".
func (g groupRoots) of(p *policy.GroupState) (*identity.GroupKeys, error) {
	i := slices.IndexFunc(g.keys, func(k *identity.GroupKeys) bool { return k.Roster() == p.ID() })
	if i < 0 {
		return nil, wire.Refuse(wire.GroupElsewhere, "authority: root of group "+p.Group.Name, g.refused[p.ID()], "an authority that the group's roster names")
	}
	return g.keys[i], nil
}

// root is the group root of a roster, the zero digest where this authority has no
// keys of it. Statements count for one root alone, so none count under the zero digest.
func (g groupRoots) root(p *policy.GroupState) attest.Digest {
	if keys, err := g.of(p); err == nil {
		return keys.RootDigest()
	}
	return attest.Digest{}
}

// passing reports whether a refusal may end without another policy: one by the store or
// by the TEE. Code and machines that a roster does not name stay so.
func (g groupRoots) passing() bool {
	for _, err := range g.refused {
		switch wire.ReasonOf(err) {
		case wire.StoreFailed, wire.CRLMissing, wire.TooMany, wire.ClockSkew, wire.Internal:
			return true
		}
	}
	return false
}

// groupSecrets are the keys of rosters that were opened before: unsealing is slow on
// some TEEs, and each step of the history makes a snapshot.
type groupSecrets struct {
	mu   sync.Mutex
	keys map[wire.Digest]*identity.GroupKeys // guarded by mu, by roster
}

// groupRoots finds the keys of the rosters of a policy. Of a roster that names this
// authority and has no secret it draws one; unnamed is why the policy does not name this
// authority, which then draws and opens nothing.
func (a *Authority) groupRoots(ctx context.Context, approved policy.Approved, own attest.Question, unnamed error) groupRoots {
	a.groups.mu.Lock()
	defer a.groups.mu.Unlock()
	found := groupRoots{refused: map[wire.Digest]error{}}
	kept := map[wire.Digest]*identity.GroupKeys{}
	var damaged []error
	for _, name := range approved.Document().GroupNames() {
		for p := approved.GroupByName(name); p != nil; p = p.Predecessor {
			err := unnamed
			if err == nil {
				err = a.rosterNames(p.Roster, own)
			}
			keys := a.groups.keys[p.ID()]
			if err == nil && keys == nil {
				var fault error
				keys, fault, err = a.openGroup(ctx, p)
				damaged = append(damaged, records.Faults(fault)...)
			}
			if err != nil {
				found.refused[p.ID()] = err
				continue
			}
			found.keys = append(found.keys, keys)
			kept[p.ID()] = keys
		}
	}
	if unnamed == nil {
		a.damage.Note(a.log, records.TableGroups, damaged)
		a.groups.keys = kept
	}
	return found
}

// rosterNames appraises our own evidence by the roster's own rules, and demands that
// the roster names our measurement and our machine. Policy is not asked: its owners
// may name other authorities than the group's parties.
func (a *Authority) rosterNames(r policy.Roster, own attest.Question) error {
	own.Rules = r.AuthorityRules()
	result, err := a.verifier.Appraise(own)
	if err != nil {
		return fmt.Errorf("appraising our own evidence by the roster of group %s: %w", r.Group, err)
	}
	if err := r.AdmitAuthority(result); err != nil {
		return fmt.Errorf("matching our own measurement with the roster of group %s: %w", r.Group, err)
	}
	return nil
}

// openGroup opens the secret of a roster that names us, or draws it where there is
// none. A row without our tag is named, and replaced: it holds no secret of an authority.
func (a *Authority) openGroup(ctx context.Context, p *policy.GroupState) (keys *identity.GroupKeys, damaged, err error) {
	row, err := a.store.Group(ctx, p.ID())
	if err != nil {
		return nil, nil, err
	}
	if row.Key != nil && !a.records.Tagged(records.TableGroups, row) {
		damaged = wire.Refuse(wire.StoreForeign, fmt.Sprintf("store: row %x of %s", row.Key, records.TableGroups), "a changed row", "as an authority wrote it")
	}
	if row.Key == nil || damaged != nil {
		if row, err = a.drawGroup(ctx, p); err != nil {
			return nil, damaged, err
		}
	}
	plain, err := a.sealer.Unseal(ctx, row.Content)
	if err != nil {
		return nil, damaged, fmt.Errorf("unsealing the secret of group %s: %w", p.Group.Name, err)
	}
	defer clear(plain)
	keys, err = identity.OpenGroup(plain, p.ID())
	if err != nil {
		return nil, damaged, fmt.Errorf("reading the secret of group %s: %w", p.Group.Name, err)
	}
	return keys, damaged, nil
}

// drawGroup draws the secret of a roster, seals it to the authorities that the roster
// names, and to no others, and adds its row. Another authority of this store may be
// faster: the row that stands is returned.
func (a *Authority) drawGroup(ctx context.Context, p *policy.GroupState) (store.Row, error) {
	id := p.ID()
	plain := identity.SealedGroup(identity.NewSecret(), id)
	defer clear(plain)
	sealed, err := a.sealer.Seal(ctx, plain, p.Group.Authority.References)
	if err != nil {
		return store.Row{}, fmt.Errorf("sealing the secret of group %s: %w", p.Group.Name, err)
	}
	row := store.Row{Key: id[:], Content: sealed}
	row.MAC = a.records.Tag(records.TableGroups, row)
	row, err = a.store.CreateGroup(ctx, row, a.records.Believed(records.TableGroups))
	if err == nil {
		a.log.Info("a group has a root", "group", p.Group.Name, "roster", id)
	}
	return row, err
}

// maxGroupRootBody bounds the body that asks for the root of a group: a nonce, a
// credential and a digest.
const maxGroupRootBody = 4 << 10

func (a *Authority) postGroupRoot(w http.ResponseWriter, r *http.Request) (any, error) {
	var request api.GroupRootRequest
	if err := api.ReadBody(w, r, maxGroupRootBody, &request); err != nil {
		return nil, err
	}
	return a.groupRoot(r.Context(), limit.AddressOf(r.RemoteAddr), r.PathValue("group"), request)
}

// groupRoot shows the root of a roster in force, with fresh evidence of our own that
// parties appraise by the roster's values before they approve it.
func (a *Authority) groupRoot(ctx context.Context, from netip.Addr, group string, r api.GroupRootRequest) (api.GroupRoot, error) {
	if len(r.Nonce) != trustNonce || len(r.Credential) > maxCredential {
		return api.GroupRoot{}, wire.Refuse(wire.BadRequest, "group root: nonce, credential in bytes", fmt.Sprint(len(r.Nonce), ", ", len(r.Credential)), fmt.Sprint(trustNonce, ", at most ", maxCredential))
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
	keys, err := snap.groups.of(p)
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

// reporter signs the reports for a grant: of a group, a leaf under the group's root,
// and of a task the one that the authority serves with. The chain ends with the
// authority root. The digest is the group's root,
// zero outside groups.
func (e *enrolment) reporter() (leaf identity.Leaf, chain [][]byte, root wire.Digest, err error) {
	if p := e.grant.GroupState; p != nil {
		leaf, err = e.snap.issuer.GroupAuthorityLeaf(p, e.at)
		return leaf, [][]byte{leaf.DER, e.identity.Root, e.snap.issuer.AuthorityRoot()}, e.snap.groups.root(p), err
	}
	leaf, err = e.snap.authorityLeaf(e.at)
	return leaf, [][]byte{leaf.DER, e.snap.issuer.AuthorityRoot()}, root, err
}

// ended says of which groups this authority holds no root, and why: its own part in them
// has ended, or never began.
func (s *snapshot) ended() (all []string) {
	if s.unnamed != nil {
		return nil // it issues nothing at all
	}
	for _, name := range s.doc().GroupNames() {
		p := s.approved.GroupByName(name)
		if _, err := s.groups.of(p); err != nil {
			all = append(all, fmt.Sprintf("no root of group %s, roster %s: %v", name, p.ID(), s.groups.refused[p.ID()]))
		}
	}
	return all
}

// hasRoot refuses, with "group-authority", a request for a group of which this
// authority has the root of no roster in force.
func (s *snapshot) hasRoot(group string) error {
	var refusals []error
	for p := s.approved.GroupByName(group); p != nil; p = p.Predecessor {
		_, err := s.groups.of(p)
		if err == nil {
			return nil
		}
		refusals = append(refusals, err)
	}
	return errors.Join(refusals...)
}
