package identity

import (
	"crypto/x509"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// scorersOfTwo are edits by which both parties have a program in role scorer, and one party is a
// quorum.
var scorersOfTwo = []string{
	`quorum = 2`, `quorum = 1`,
	`scorer = { members = [ {`, `scorer = { members = [ { party = "north", task = "scoring", release = "2026.10" }, {`,
}

func withdraws(s *policy.Statement) { s.Withdraws = true }

// TestOwnConsent: with a quorum of one, a unit's leaf is accepted only while the party that it
// names approves. The shared leaf of a role names no party: it ends with the cut that a
// withdrawal makes, and units of a party that never approved do not have it.
func TestOwnConsent(t *testing.T) {
	both := agreed(t, 1, scorersOfTwo...)
	southern, northern := both.scorer(t), both.member(t, "trial", "scorer", "scoring", "2026.10")
	chains := map[string][]*x509.Certificate{"the role's pair": both.roleChain(t, southern)}
	for name, g := range map[string]policy.Grant{"south's unit": southern, "north's unit": northern} {
		leaf := testworld.Must(both.issuer.UnitLeaf(g, unitKey(name).Public(), noon))
		chains[name] = parse(t, leaf.DER, testworld.Must(both.issuer.GroupIdentity(g.GroupState)).Root)
	}
	never := newWorld(t, 1, grouped(scorersOfTwo...)...).said(t, "trial", "north", nil)
	for _, tt := range []struct {
		name string
		by   *world
		leaf string
		want attest.Reason // empty: accepted
	}{
		{"both approve", both, "the role's pair", ""},
		{"both approve", both, "south's unit", ""},
		{"both approve", both, "north's unit", ""},
		{"south withdrew", both.said(t, "trial", "south", withdraws), "the role's pair", wire.CutOff},
		{"south withdrew", both.said(t, "trial", "south", withdraws), "south's unit", wire.Withdrawn},
		{"south withdrew", both.said(t, "trial", "south", withdraws), "north's unit", ""},
		{"south never approved", never, "the role's pair", ""},
		{"south never approved", never, "south's unit", wire.NoQuorum},
		{"south never approved", never, "north's unit", ""},
	} {
		t.Run(tt.name+", "+tt.leaf, func(t *testing.T) {
			e := both.expectScorer()
			e.Policy = tt.by.policy
			if tt.leaf != "the role's pair" {
				e.Use = UseSigning
			}
			_, err := Check(chains[tt.leaf], both.root(t), e)
			if tt.want == "" && err != nil {
				t.Fatal(err)
			}
			if tt.want != "" {
				testworld.Refused(t, err, tt.want)
			}
		})
	}
}

// TestIssuerDemandsConsent: nothing is issued for a party that does not approve, whatever the
// quorum. A unit's leaf ends with its own party's approval, the shared leaf of a role with the
// first approval of its parties to end. After a withdrawal the role has a new key.
func TestIssuerDemandsConsent(t *testing.T) {
	soon := noon.Add(20 * time.Minute)
	both := agreed(t, 1, scorersOfTwo...)
	ending := both.said(t, "trial", "south", func(s *policy.Statement) { s.NotAfter = soon })
	northern := ending.member(t, "trial", "scorer", "scoring", "2026.10")
	if leaf := testworld.Must(ending.issuer.SharedLeaf(northern, noon)); !leaf.NotAfter.Equal(soon) {
		t.Errorf("got a pair of the role until %v, want %v: south's approval ends", leaf.NotAfter, soon)
	}
	if leaf := testworld.Must(ending.issuer.UnitLeaf(northern, unitKey("n").Public(), noon)); !leaf.NotAfter.After(soon) {
		t.Errorf("got a leaf of north's unit until %v, want it to outlive south's approval", leaf.NotAfter)
	}
	southern := ending.scorer(t)
	if leaf := testworld.Must(ending.issuer.UnitLeaf(southern, unitKey("s").Public(), noon)); !leaf.NotAfter.Equal(soon) {
		t.Errorf("got a leaf of south's unit until %v, want %v", leaf.NotAfter, soon)
	}
	gone := both.said(t, "trial", "south", withdraws)
	before := testworld.Must(both.issuer.SharedLeaf(both.scorer(t), noon))
	northern = gone.member(t, "trial", "scorer", "scoring", "2026.10")
	testworld.Must(gone.issuer.UnitLeaf(northern, unitKey("n").Public(), noon))
	if after := testworld.Must(gone.issuer.SharedLeaf(northern, noon)); after.Key.Equal(before.Key) {
		t.Error("the role's pair that south's units held goes on after it withdrew")
	}
	forged := northern // as if the authority had not checked
	forged.Party = party("south").Digest()
	_, err := gone.issuer.UnitLeaf(forged, unitKey("s").Public(), noon)
	testworld.Refused(t, err, wire.Withdrawn)
	_, err = gone.issuer.SharedLeaf(forged, noon)
	testworld.Refused(t, err, wire.Withdrawn)
	forged.Party = attest.Digest{9}
	_, err = gone.issuer.UnitLeaf(forged, unitKey("s").Public(), noon)
	testworld.Refused(t, err, wire.NoParty)
}

// under returns a world in which the parties of group trial approved the root of another secret,
// as of an authority that the real parties did not choose.
func under(t testing.TB, seed byte, root *GroupKeys) *world {
	t.Helper()
	w := newWorld(t, seed, grouped()...)
	for _, name := range []string{"north", "south"} {
		w = w.said(t, "trial", name, func(s *policy.Statement) { s.GroupRoot = root.RootDigest() })
	}
	return &world{World: w.World, keys: w.keys, policy: w.policy, issuer: testworld.Must(w.keys.Issuer(w.policy, root))}
}

// TestGroupRootIsTheParties: an attacker has the authority's root secret and all policy owners,
// but not a root that the parties approved. A checker of the group accepts none of its leaves.
func TestGroupRootIsTheParties(t *testing.T) {
	w := agreed(t, 1)
	secret := testworld.Must(DeriveGroup(secretOf(7), w.policy.GroupByName("trial").ID()))
	theirs := under(t, 1, secret)
	if theirs.keys.RootDigest() != w.keys.RootDigest() || theirs.policy.GroupByName("trial").ID() != w.policy.GroupByName("trial").ID() {
		t.Fatal("the other authority is of another domain: the test tests nothing")
	}
	grant, err := theirs.policy.AdmitMember("trial", "scorer", theirs.grant(t, "scoring", "2026.11").Result, everyParty(theirs.policy, "trial"),
		func(*policy.GroupState) attest.Digest { return secret.RootDigest() }, noon)
	if err != nil {
		t.Fatal(err)
	}
	chain := theirs.roleChain(t, grant)
	e := w.expectScorer()
	e.Policy = theirs.policy
	if _, err := Check(chain, w.root(t), e); err != nil {
		t.Fatalf("where the parties approved that root: %v", err)
	}
	_, err = Check(chain, w.root(t), w.expectScorer())
	testworld.Refused(t, err, wire.NoQuorum)
	testworld.Refused(t, CheckGroupRoot(chain[1], Expect{Policy: w.policy, Group: "trial", At: noon}), wire.NoQuorum)
	// Combinations of the parties' root with the attacker's certificates are refused too.
	good := w.roleChain(t, w.scorer(t))
	_, err = Check([]*x509.Certificate{chain[0], good[1], good[2]}, w.root(t), w.expectScorer())
	testworld.Refused(t, err, wire.BadSignature)
	_, err = Check([]*x509.Certificate{good[0], good[1], chain[2]}, w.root(t), w.expectScorer())
	testworld.Refused(t, err, wire.WrongIdentity)
}

// TestGroupAuthority: the leaf that signs reports for a group is accepted for that group and for
// signing only. The authority's own leaf is accepted for no group.
func TestGroupAuthority(t *testing.T) {
	w := agreed(t, 1)
	reporter := func(w *world, group string) []*x509.Certificate {
		p := w.policy.GroupByName(group)
		return parse(t, testworld.Must(w.issuer.GroupAuthorityLeaf(p, noon)).DER, testworld.Must(w.issuer.GroupIdentity(p)).Root)
	}
	own := parse(t, testworld.Must(w.issuer.AuthorityLeaf(noon)).DER)
	expect := func(change func(*Expect)) Expect {
		e := Expect{Policy: w.policy, Kinds: []Kind{KindAuthority}, Use: UseSigning, At: noon, Group: "trial"}
		if change != nil {
			change(&e)
		}
		return e
	}
	if p, err := Check(reporter(w, "trial"), w.root(t), expect(nil)); err != nil || p.ID() != w.policy.GroupByName("trial").ID() || p.LeafKind() != KindAuthority {
		t.Fatalf("got %v of %v, %v", p.LeafKind(), p.ID(), err)
	}
	other := under(t, 1, testworld.Must(DeriveGroup(secretOf(7), w.policy.GroupByName("trial").ID())))
	withdrawn := w.said(t, "trial", "south", withdraws)
	for _, tt := range []struct {
		name   string
		chain  []*x509.Certificate
		expect Expect
		want   attest.Reason
	}{
		{"of another group", reporter(w, "audit"), expect(nil), wire.WrongGroup},
		{"of a group, for a task", reporter(w, "trial"), expect(func(e *Expect) { e.Group = "" }), wire.WrongGroup},
		{"the authority's own", own, expect(nil), wire.WrongGroup},
		{"the authority's own, beside the group root", append(own, reporter(w, "trial")[1]), expect(nil), wire.WrongGroup},
		{"for TLS", reporter(w, "trial"), expect(func(e *Expect) { e.Use = UseTLS }), wire.WrongKind},
		{"as a member", reporter(w, "trial"), w.expectScorer(), wire.WrongKind},
		{"without the group root", reporter(w, "trial")[:1], expect(nil), wire.BadChain},
		{"under the authority root", append(reporter(w, "trial")[:1:1], w.root(t)), expect(nil), wire.WrongKind},
		{"under a root that no party approved", reporter(other, "trial"), expect(nil), wire.NoQuorum},
		{"of a group that is not agreed on", reporter(w, "trial"), expect(func(e *Expect) { e.Policy = withdrawn.policy }), wire.NoQuorum},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Check(tt.chain, w.root(t), tt.expect)
			testworld.Refused(t, err, tt.want)
		})
	}
	_, err := testworld.Must(w.keys.Issuer(w.policy)).GroupAuthorityLeaf(w.policy.GroupByName("trial"), noon)
	testworld.Refused(t, err, wire.GroupElsewhere)
	_, err = testworld.Must(w.keys.Issuer(w.policy)).SharedLeaf(w.scorer(t), noon)
	testworld.Refused(t, err, wire.GroupElsewhere)
}

// TestPinnedParties: a pin of a role's party refuses units of every other party, and a shared
// leaf that units of another party have too.
func TestPinnedParties(t *testing.T) {
	w := agreed(t, 1, scorersOfTwo...)
	north, south := party("north").Digest(), party("south").Digest()
	unit := testworld.Must(w.issuer.UnitLeaf(w.scorer(t), unitKey("s").Public(), noon))
	signing := parse(t, unit.DER, testworld.Must(w.issuer.GroupIdentity(w.scorer(t).GroupState)).Root)
	for _, tt := range []struct {
		name  string
		pins  map[string][]attest.Digest
		chain []*x509.Certificate
		use   Use
		want  attest.Reason
	}{
		{"its own party", map[string][]attest.Digest{"scorer": {south}}, signing, UseSigning, ""},
		{"an old and a new key", map[string][]attest.Digest{"scorer": {{1}, south}}, signing, UseSigning, ""},
		{"a pin of another role", map[string][]attest.Digest{"holder": {north}}, signing, UseSigning, ""},
		{"another party", map[string][]attest.Digest{"scorer": {north}}, signing, UseSigning, wire.NoParty},
		{"no key", map[string][]attest.Digest{"scorer": {}}, signing, UseSigning, wire.NoParty},
		{"the pair, one party", map[string][]attest.Digest{"scorer": {south}}, w.roleChain(t, w.scorer(t)), UseTLS, wire.NoParty},
		{"the pair, both parties", map[string][]attest.Digest{"scorer": {south, north}}, w.roleChain(t, w.scorer(t)), UseTLS, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := w.expectScorer()
			e.Use, e.Parties = tt.use, tt.pins
			_, err := Check(tt.chain, w.root(t), e)
			if tt.want == "" && err != nil {
				t.Fatal(err)
			}
			if tt.want != "" {
				testworld.Refused(t, err, tt.want)
			}
		})
	}
}

// TestApprovers: a checker that names a party accepts a group only while that party approves it
// under the chain's root, even if a quorum of other parties does.
func TestApprovers(t *testing.T) {
	w := agreed(t, 1, scorersOfTwo...).said(t, "trial", "north", func(s *policy.Statement) { s.Withdraws = true })
	north, south := party("north").Digest(), party("south").Digest()
	unit := testworld.Must(w.issuer.UnitLeaf(w.scorer(t), unitKey("s").Public(), noon))
	chain := parse(t, unit.DER, testworld.Must(w.issuer.GroupIdentity(w.scorer(t).GroupState)).Root)
	for _, tt := range []struct {
		name string
		keys []attest.Digest
		want attest.Reason
	}{
		{"no party", nil, ""},
		{"a party that approves", []attest.Digest{south}, ""},
		{"its old and its new key", []attest.Digest{{1}, south}, ""},
		{"a party that withdrew", []attest.Digest{north}, wire.Withdrawn},
		{"both", []attest.Digest{south, north}, wire.Withdrawn},
		{"a party of another group", []attest.Digest{{1}}, wire.NoParty},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := w.expectScorer()
			e.Use, e.Approvers = UseSigning, tt.keys
			_, err := Check(chain, w.root(t), e)
			if tt.want == "" && err != nil {
				t.Fatal(err)
			}
			if tt.want != "" {
				testworld.Refused(t, err, tt.want)
			}
		})
	}
}
