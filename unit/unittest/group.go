package unittest

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Says makes a party approve the group under its own root, or withdraw.
func (w *World) Says(party string, withdraws bool) {
	w.T.Helper()
	w.SaysOf(groupKeys(w.Policy().GroupByName("trial").ID()).RootDigest(), party, withdraws)
}

// SaysOf adds a party's statement about the group under a root: an approval or a withdrawal.
func (w *World) SaysOf(root attest.Digest, party string, withdraws bool) {
	w.T.Helper()
	w.World = w.WithStep(w.Statement("trial", party, root, func(s *policy.Statement) { s.Withdraws = withdraws }))
}

// Grouped returns a World whose policy has a group that its one party approves, in which role
// scorer calls role holder. Edits are pairs of old and new text, applied to the policy before
// the group is added.
func Grouped(t *testing.T, edits ...string) *World {
	t.Helper()
	w := New(t, "1h")
	for i := 0; i < len(edits); i += 2 {
		w = w.Edited(edits[i], edits[i+1])
	}
	w.Keys["north"] = testworld.NewKey()
	w = w.Edited("[task.other]", fmt.Sprintf(`[group.trial]
key_mode = "shared"
quorum = 1
until = 2026-01-20T00:00:00Z
term = "8760h"
party = [ %s ]
[group.trial.role]
holder = { members = [ { party = "north", task = "keys", release = "1" } ] }
idler = { members = [ { party = "north", task = "other", release = "1" } ] }
scorer = { members = [ { party = "north", task = "scoring", release = "1" } ], calls = ["holder"] }
[task.other]`, w.OwnerRows("north")))
	w = w.Edited("until = 2026-01-20T00:00:00Z", "until = "+time.Now().Add(20*time.Hour).UTC().Format("2006-01-02T15:04:05Z"))
	w.Says("north", false)
	return w
}

// groupKeys returns the group keys of a roster at the authority that the parties approve.
func groupKeys(roster attest.Digest) *identity.GroupKeys {
	return GroupKeysOf(OwnSecret, roster)
}

// OwnSecret is the secret from which the authority that the parties approve derives each
// roster's root.
const OwnSecret = "the group's own secret"

// GroupKeysOf returns the group keys of a roster, derived from the secret from.
func GroupKeysOf(from string, roster attest.Digest) *identity.GroupKeys {
	seed := wire.Sum([]byte(from + roster.Hex()))
	secret, err := identity.OpenSecret(seed[:])
	if err != nil {
		panic(err)
	}
	keys, err := identity.DeriveGroup(secret, roster)
	if err != nil {
		panic(err)
	}
	return keys
}

// groupsOf returns the group keys of all rosters of a policy.
func groupsOf(secret string, p policy.Approved) (all []*identity.GroupKeys) {
	for _, name := range p.Document().GroupNames() {
		for pact := p.GroupByName(name); pact != nil; pact = pact.Predecessor {
			all = append(all, GroupKeysOf(secret, pact.ID()))
		}
	}
	return all
}

// groupReport fills a report for a unit in a group.
func (f *Authority) groupReport(i *identity.Issuer, p policy.Approved, request api.CertificateRequest, result attest.Result) (api.Report, error) {
	pins := policy.Pins{Parties: request.PartyKeys, Roster: request.Roster}
	if f.Faults.Party != nil {
		pins = policy.Pins{Parties: f.Faults.Party}
	}
	grant, err := p.AdmitMember(request.Group, request.Role, result, pins, func(p *policy.GroupState) attest.Digest { return GroupKeysOf(f.Secret, p.ID()).RootDigest() }, f.Clock())
	if err != nil {
		return api.Report{}, err
	}
	id, err := i.GroupIdentity(grant.GroupState)
	if err != nil {
		return api.Report{}, err
	}
	report := api.Report{
		Schema: api.ReportSchema, Task: grant.Task.Name, Release: grant.Release.Name, Identity: id.ID, KeyMode: string(grant.GroupState.Group.KeyMode),
		Group: request.Group, Role: request.Role, Roster: grant.GroupState.Roster.Bytes(),
		IdentityCA: id.Root, Cross: id.Cross, Authority: i.AuthorityRoot(), Head: p.PolicyHead(), ProvedHead: f.prove(p), Rings: Rings(f.Clock()),
	}
	return report, f.leaves(i, grant, request, &report)
}

// RingKeys returns a previous, a current and a next ring key. Their bytes are all first, first+1
// and first+2.
func RingKeys(first byte, now time.Time) api.RingKeys {
	key := func(n byte) *api.RingKey {
		return &api.RingKey{Key: bytes.Repeat([]byte{first + n}, 32), End: now.Add(time.Duration(n+1) * time.Hour).UTC()}
	}
	return api.RingKeys{Previous: key(0), Current: key(1), Next: key(2)}
}

// Rings returns the ring keys in the authority's reports at the time now.
func Rings(now time.Time) api.Rings {
	return api.Rings{Strict: RingKeys(0x10, now), Follow: RingKeys(0x20, now)}
}
