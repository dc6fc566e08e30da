package identity

import (
	"crypto/x509"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// groupText has two groups of the test policy's tasks, with key modes shared and unit.
const groupText = `
[group.trial]
key_mode = "shared"
quorum = 2
until = 2026-12-20T00:00:00Z
names = ["trial.clinic.example"]
party = [ { name = "north", ssh = "NORTH" }, { name = "south", ssh = "SOUTH" } ]
[group.trial.role]
holder = { members = [ { party = "north", task = "keys", release = "1.4" } ] }
scorer = { members = [ { party = "south", task = "scoring", release = "2026.11" } ], calls = ["holder"] }
[group.audit]
key_mode = "unit"
quorum = 1
until = 2026-12-20T00:00:00Z
party = [ { name = "north", ssh = "NORTH" } ]
[group.audit.role]
holder = { members = [ { party = "north", task = "keys", release = "1.4" } ] }
`

// party returns a key that is the same in every run.
func party(name string) testworld.Key {
	return testworld.KeyOf(wire.Sum([]byte("identity test party " + name)))
}

// grouped returns edits that add the groups.
func grouped(edits ...string) []string {
	return append([]string{"[task.keys]\n", groupText + "[task.keys]\n"}, append(edits, "NORTH", party("north").AuthorizedKey(), "SOUTH", party("south").AuthorizedKey())...)
}

// said returns the world after a party's statement.
func (w *world) said(t testing.TB, group, name string, change func(*policy.Statement)) *world {
	t.Helper()
	return worldOf(w.keys, w.WithStep(w.Statement(group, name, w.groupRoot(w.policy.GroupByName(group)), change)))
}

// everyParty pins the keys of all parties of a group.
func everyParty(p policy.Approved, group string) (pins policy.Pins) {
	if pact := p.GroupByName(group); pact != nil {
		for _, party := range pact.Roster.Parties {
			pins.Parties = append(pins.Parties, party.Key)
		}
	}
	return pins
}

// groupRoot returns the root of a group, as the issuer has it.
func (w *world) groupRoot(p *policy.GroupState) attest.Digest { return groupKeys(p.ID()).RootDigest() }

// agreed returns a world whose groups are approved.
func agreed(t testing.TB, seed byte, edits ...string) *world {
	t.Helper()
	return newWorld(t, seed, grouped(edits...)...).said(t, "trial", "north", nil).said(t, "trial", "south", nil).said(t, "audit", "north", nil)
}

// member returns the grant of a program in a role of a group.
func (w *world) member(t testing.TB, group, role, task, release string) policy.Grant {
	t.Helper()
	g, err := w.policy.AdmitMember(group, role, w.grant(t, task, release).Result, everyParty(w.policy, group), w.groupRoot, noon)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// roleChain returns the chain that a unit of a role serves.
func (w *world) roleChain(t testing.TB, g policy.Grant) []*x509.Certificate {
	t.Helper()
	var leaf Leaf
	if g.GroupState.Group.KeyMode == policyfile.Shared {
		leaf = testworld.Must(w.issuer.SharedLeaf(g, noon))
	} else {
		key := unitKey("a").Public()
		leaf = testworld.Must(w.issuer.UnitTLSLeaf(g, key, wire.UnitID{1}, noon))
	}
	id := testworld.Must(w.issuer.GroupIdentity(g.GroupState))
	return parse(t, leaf.DER, id.Root, id.Cross)
}

func (w *world) scorer(t testing.TB) policy.Grant {
	return w.member(t, "trial", "scorer", "scoring", "2026.11")
}

func (w *world) expectScorer() Expect {
	return Expect{Policy: w.policy, Kinds: []Kind{KindGroup}, Use: UseTLS, At: noon, Group: "trial", Roles: []string{"scorer"}}
}

func TestCheckGroup(t *testing.T) {
	w := agreed(t, 1)
	p, err := Check(w.roleChain(t, w.scorer(t)), w.root(t), w.expectScorer())
	if err != nil {
		t.Fatal(err)
	}
	pact := w.policy.GroupByName("trial")
	if p.Group() != "trial" || p.RoleName() != "scorer" || p.TaskName() != "" || p.ID() != pact.Roster.ID() || !p.ApprovedUntil().Equal(pact.Group.Until) {
		t.Errorf("got %q %q %q %v %v", p.Group(), p.RoleName(), p.TaskName(), p.ID(), p.ApprovedUntil())
	}
	e := w.expectScorer()
	e.Use, e.Group, e.Roles = UseSigning, "audit", []string{"holder"}
	key := unitKey("a")
	holder := w.member(t, "audit", "holder", "keys", "1.4")
	signer := testworld.Must(w.issuer.UnitLeaf(holder, key.Public(), noon))
	if p, err = Check(parse(t, signer.DER, testworld.Must(w.issuer.GroupIdentity(holder.GroupState)).Root), w.root(t), e); err != nil || p.UnitID() != wire.UnitIDOf(publicKeyInfo(&key.PublicKey)) {
		t.Errorf("the signing key's certificate: %v, unit %v", err, p.UnitID())
	}
	for _, g := range []policy.Grant{w.scorer(t), holder} {
		id := testworld.Must(w.issuer.GroupIdentity(g.GroupState))
		e := Expect{Policy: w.policy, Group: g.GroupState.Group.Name, At: noon}
		if err := CheckGroupRoot(parse(t, id.Root)[0], e); err != nil {
			t.Errorf("root of %s: %v", e.Group, err)
		}
	}
}

// TestCheckRefusesPeers: each kind of wrong peer is refused with its own reason.
func TestCheckRefusesPeers(t *testing.T) {
	w := agreed(t, 1)
	good := w.roleChain(t, w.scorer(t))
	audit := w.roleChain(t, w.member(t, "audit", "holder", "keys", "1.4"))
	withdrawn := w.said(t, "trial", "south", func(s *policy.Statement) { s.Withdraws = true })
	smaller := w.next(`, calls = ["holder"]`, "").said(t, "trial", "north", nil).said(t, "trial", "south", nil)
	another, domain := agreed(t, 2), agreed(t, 1, "clinic.example", "clinic.other")
	for _, tt := range []struct {
		name   string
		chain  []*x509.Certificate
		root   *x509.Certificate
		expect func(*Expect)
		want   attest.Reason
	}{
		{"a program valid in another group", w.roleChain(t, w.member(t, "audit", "holder", "keys", "1.4")), w.root(t), nil, wire.WrongGroup},
		{"another role of the group", w.roleChain(t, w.member(t, "trial", "holder", "keys", "1.4")), w.root(t), nil, wire.WrongRole},
		{"the same program as a task", w.sharedChain(t), w.root(t), nil, wire.WrongKind},
		{"an old roster", good, w.root(t), func(e *Expect) { e.Policy = smaller.policy }, wire.StaleRoster},
		{"a roster of the future", smaller.roleChain(t, smaller.scorer(t)), w.root(t), nil, wire.StaleRoster},
		{"a party withdrew", good, w.root(t), func(e *Expect) { e.Policy = withdrawn.policy }, wire.NoQuorum},
		{"another trust domain", domain.roleChain(t, domain.scorer(t)), w.root(t), nil, wire.WrongDomain},
		{"another root", another.roleChain(t, another.scorer(t)), w.root(t), nil, wire.WrongGenesis},
		{"the other root beside it", another.roleChain(t, another.scorer(t)), another.root(t), nil, wire.WrongRoot},
		{"another pin", good, w.root(t), func(e *Expect) { e.IDs = []attest.Digest{{9}} }, wire.WrongIdentity},
		{"measurements pinned", good, w.root(t), func(e *Expect) { e.Measurements = []attest.Measurement{softMeasurement(1)} }, wire.WrongIdentity},
		{"a shared leaf that signs", good, w.root(t), func(e *Expect) { e.Use = UseSigning }, wire.WrongKind},
		{"no role said", good, w.root(t), func(e *Expect) { e.Roles = nil }, wire.WrongRole},
		{"no group said", good, w.root(t), func(e *Expect) { e.Group = "" }, wire.WrongGroup},
		{"no such group", good, w.root(t), func(e *Expect) { e.Group = "none" }, wire.WrongGroup},
		{"after the leaf", good, w.root(t), func(e *Expect) { e.At = noon.Add(2 * time.Hour) }, wire.Expired},
		{"another group's root", []*x509.Certificate{good[0], audit[1]}, w.root(t), nil, wire.BadChain},
		{"a task's cross-certificate", []*x509.Certificate{good[0], w.sharedChain(t)[1]}, w.root(t), nil, wire.WrongKind},
		{"the group-bus certificate in the root's place", []*x509.Certificate{good[0], good[2]}, w.root(t), nil, wire.WrongKind},
		{"no root", good[:1], w.root(t), nil, wire.BadChain},
		{"the authority root at the end", append(slices.Clip(good), w.root(t)), w.root(t), nil, wire.BadChain},
		{"another group's group-bus certificate", []*x509.Certificate{good[0], good[1], audit[2]}, w.root(t), nil, wire.WrongIdentity},
		{"the root once more", []*x509.Certificate{good[0], good[1], good[1]}, w.root(t), nil, wire.WrongKind},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := w.expectScorer()
			if tt.expect != nil {
				tt.expect(&e)
			}
			_, err := Check(tt.chain, tt.root, e)
			testworld.Refused(t, err, tt.want)
		})
	}
}

// TestRolesShareNoKey: the shared leaves of two roles, two groups, the task and a later window
// have five different keys.
func TestRolesShareNoKey(t *testing.T) {
	w := agreed(t, 1, `key_mode = "unit"
quorum = 1`, `key_mode = "shared"
quorum = 1`)
	seen := map[string]string{}
	note := func(name string, leaf Leaf) {
		key := string(publicKeyInfo(&leaf.Key.PublicKey))
		if other, taken := seen[key]; taken {
			t.Errorf("%s and %s have one key", name, other)
		}
		seen[key] = name
	}
	note("scorer", testworld.Must(w.issuer.SharedLeaf(w.scorer(t), noon)))
	note("holder", testworld.Must(w.issuer.SharedLeaf(w.member(t, "trial", "holder", "keys", "1.4"), noon)))
	note("holder of the other group", testworld.Must(w.issuer.SharedLeaf(w.member(t, "audit", "holder", "keys", "1.4"), noon)))
	note("task", testworld.Must(w.issuer.SharedLeaf(w.grant(t, "scoring", "2026.11"), noon)))
	note("scorer of a later window", testworld.Must(w.issuer.SharedLeaf(w.scorer(t), noon.Add(time.Hour))))
}

// TestLeafEndsWithApproval: a leaf is valid no longer than the parties' approvals.
func TestLeafEndsWithApproval(t *testing.T) {
	soon := noon.Add(20 * time.Minute)
	w := agreed(t, 1).said(t, "trial", "south", func(s *policy.Statement) { s.NotAfter = soon })
	leaf := testworld.Must(w.issuer.SharedLeaf(w.scorer(t), noon))
	if !leaf.NotAfter.Equal(soon) || !leaf.RenewBefore.Before(soon) || leaf.RenewBefore.Before(leaf.RenewAfter) {
		t.Errorf("got end %v, renewal %v to %v, want end %v", leaf.NotAfter, leaf.RenewAfter, leaf.RenewBefore, soon)
	}
	chain := w.roleChain(t, w.scorer(t))
	e := w.expectScorer()
	e.At = soon.Add(time.Second)
	_, err := Check(chain, w.root(t), e)
	testworld.Refused(t, err, wire.Expired)
	_, err = w.issuer.SharedLeaf(w.scorer(t), soon)
	testworld.Refused(t, err, wire.NoQuorum)
}

// TestIssuerRefusesPacts: nothing is issued for a grant of a different policy, or for no group.
func TestIssuerRefusesPacts(t *testing.T) {
	w := agreed(t, 1)
	before := w.scorer(t)
	after := w.said(t, "trial", "north", nil)
	_, err := after.issuer.SharedLeaf(before, noon)
	testworld.Refused(t, err, wire.NotAllowed)
	_, err = after.issuer.GroupIdentity(before.GroupState)
	testworld.Refused(t, err, wire.NotFound)
	_, err = w.issuer.GroupIdentity(nil)
	testworld.Refused(t, err, wire.NotFound)
}

// TestAdmitMember: a program is admitted only to its own roles.
func TestAdmitMember(t *testing.T) {
	w := agreed(t, 1)
	keys, old := w.grant(t, "keys", "1.4").Result, w.grant(t, "scoring", "2026.10").Result
	for _, tt := range []struct {
		name, group, role string
		result            attest.Result
		at                time.Time
		want              attest.Reason
	}{
		{"another role", "trial", "scorer", keys, noon, wire.WrongRole},
		{"a release that is no member", "trial", "scorer", old, noon, wire.NotMeasured},
		{"no such role", "trial", "none", keys, noon, wire.NotFound},
		{"no such group", "none", "holder", keys, noon, wire.NotFound},
		{"nothing appraised", "trial", "holder", attest.Result{}, noon, wire.NotMeasured},
		{"after the group's end", "trial", "holder", keys, w.policy.GroupByName("trial").Group.Until, wire.Expired},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := w.policy.AdmitMember(tt.group, tt.role, tt.result, everyParty(w.policy, tt.group), w.groupRoot, tt.at)
			testworld.Refused(t, err, tt.want)
		})
	}
	unheard := newWorld(t, 1, grouped()...)
	_, err := unheard.policy.AdmitMember("trial", "holder", keys, everyParty(unheard.policy, "trial"), unheard.groupRoot, noon)
	testworld.Refused(t, err, wire.NoQuorum)
}
