package sealed

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// GroupRoots are the keys of those rosters in force that name this authority, and for each other
// roster in force the reason why this authority has no keys. The keys are not derived from the
// root secret of the domain: an authority that the roster names draws them in its TEE, and seals
// them to the authorities that the roster names.
type GroupRoots struct {
	All     []*identity.GroupKeys
	refused map[wire.Digest]error // by roster
}

// KeysOf returns the keys of a roster, or refuses with "group-authority".
func (g GroupRoots) KeysOf(p *policy.GroupState) (*identity.GroupKeys, error) {
	i := slices.IndexFunc(g.All, func(k *identity.GroupKeys) bool { return k.Roster() == p.ID() })
	if i < 0 {
		return nil, wire.Refuse(wire.GroupElsewhere, "authority: root of group "+p.Group.Name, g.refused[p.ID()], "an authority that the group's roster names")
	}
	return g.All[i], nil
}

// RootDigest returns the group root of a roster, the zero digest where this authority has no keys
// for it. Statements count for one root only, so none count under the zero digest.
func (g GroupRoots) RootDigest(p *policy.GroupState) attest.Digest {
	if keys, err := g.KeysOf(p); err == nil {
		return keys.RootDigest()
	}
	return attest.Digest{}
}

// Refusal returns why this authority has no keys for a roster.
func (g GroupRoots) Refusal(p *policy.GroupState) error { return g.refused[p.ID()] }

// Passing reports whether a refusal may end without a new policy: a refusal by the store or the
// TEE may, a refusal of code or machines that the roster does not name may not.
func (g GroupRoots) Passing() bool {
	for _, err := range g.refused {
		switch wire.ReasonOf(err) {
		case wire.StoreFailed, wire.CRLMissing, wire.TooMany, wire.ClockSkew, wire.Internal:
			return true
		}
	}
	return false
}

// Groups opens the secrets of groups, and draws those that do not exist yet. It caches the keys
// of rosters, because unsealing is slow on some TEEs and each step of the history needs the keys
// again. All exported fields are required. It is safe for concurrent use.
type Groups struct {
	Store    *store.Store
	Sealer   attest.Sealer
	Verifier *attest.Verifier
	Records  *records.Records
	Damage   *records.Damage
	Log      *slog.Logger

	mu   sync.Mutex
	keys map[wire.Digest]*identity.GroupKeys // guarded by mu, by roster
}

// FindRoots returns the keys of the rosters of a policy. It draws a secret for a roster that
// names this authority and has no secret yet. unnamed is the reason why the policy does not name
// this authority: then it draws and opens nothing.
func (g *Groups) FindRoots(ctx context.Context, approved policy.Approved, own attest.Question, unnamed error) GroupRoots {
	g.mu.Lock()
	defer g.mu.Unlock()
	found := GroupRoots{refused: map[wire.Digest]error{}}
	kept := map[wire.Digest]*identity.GroupKeys{}
	var damaged []error
	for _, name := range approved.Document().GroupNames() {
		for p := approved.GroupByName(name); p != nil; p = p.Predecessor {
			err := unnamed
			if err == nil {
				err = g.checkRoster(p.Roster, own)
			}
			keys := g.keys[p.ID()]
			if err == nil && keys == nil {
				var fault error
				keys, fault, err = g.openGroup(ctx, p)
				damaged = append(damaged, records.Faults(fault)...)
			}
			if err != nil {
				found.refused[p.ID()] = err
				continue
			}
			found.All = append(found.All, keys)
			kept[p.ID()] = keys
		}
	}
	if unnamed == nil {
		g.Damage.Report(g.Log, records.TableGroups, damaged)
		g.keys = kept
	}
	return found
}

// checkRoster appraises the authority's own evidence by the roster's rules, and demands that the
// roster names its measurement and its machine. The policy does not count here: its owners may
// name other authorities than the group's parties do.
func (g *Groups) checkRoster(r policy.Roster, own attest.Question) error {
	own.Rules = r.AuthorityRules()
	result, err := g.Verifier.Appraise(own)
	if err != nil {
		return fmt.Errorf("appraising our own evidence by the roster of group %s: %w", r.Group, err)
	}
	if err := r.AdmitAuthority(result); err != nil {
		return fmt.Errorf("matching our own measurement with the roster of group %s: %w", r.Group, err)
	}
	return nil
}

// openGroup opens the secret of a roster that names this authority, or draws it if there is none.
// It reports and replaces a row without a valid MAC: no authority wrote its secret.
func (g *Groups) openGroup(ctx context.Context, p *policy.GroupState) (keys *identity.GroupKeys, damaged, err error) {
	row, err := g.Store.Group(ctx, p.ID())
	if err != nil {
		return nil, nil, err
	}
	if row.Key != nil && !g.Records.Tagged(records.TableGroups, row) {
		damaged = wire.Refuse(wire.StoreForeign, fmt.Sprintf("store: row %x of %s", row.Key, records.TableGroups), "a changed row", "as an authority wrote it")
	}
	if row.Key == nil || damaged != nil {
		if row, err = g.drawGroup(ctx, p); err != nil {
			return nil, damaged, err
		}
	}
	plain, err := g.Sealer.Unseal(ctx, row.Content)
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

// drawGroup draws the secret of a roster, seals it to the authorities that the roster names and
// to no others, and adds its row. Another authority of this store may be faster: drawGroup
// returns the row in the store.
func (g *Groups) drawGroup(ctx context.Context, p *policy.GroupState) (store.Row, error) {
	id := p.ID()
	plain := identity.SealedGroup(identity.NewSecret(), id)
	defer clear(plain)
	sealed, err := g.Sealer.Seal(ctx, plain, p.Group.Authority.References)
	if err != nil {
		return store.Row{}, fmt.Errorf("sealing the secret of group %s: %w", p.Group.Name, err)
	}
	row := store.Row{Key: id[:], Content: sealed}
	row.MAC = g.Records.ComputeMAC(records.TableGroups, row)
	row, err = g.Store.CreateGroup(ctx, row, g.Records.Believed(records.TableGroups))
	if err == nil {
		g.Log.Info("a group has a root", "group", p.Group.Name, "roster", id)
	}
	return row, err
}
