package identity

import (
	"bytes"
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// signerOf returns the chain of a unit's signing key, with an expectation that accepts it.
func (w *world) signerOf(t testing.TB, task, release string) ([]*x509.Certificate, Expect) {
	t.Helper()
	leaf := testworld.Must(w.issuer.UnitLeaf(w.grant(t, task, release), unitKey("a").Public(), noon))
	id := testworld.Must(w.issuer.Identity(task, release))
	return parse(t, leaf.DER, id.Cross), Expect{Policy: w.policy, Kinds: []Kind{KindUnit}, Use: UseSigning, IDs: []attest.Digest{id.ID}, At: noon}
}

// TestCheckRefusesCutUnits: a checker with the newer policy refuses a cut unit at once, whatever
// lifetime its certificate has left, and whether it pins the task, the identity or the code. A
// checker with the older policy still accepts it.
func TestCheckRefusesCutUnits(t *testing.T) {
	w := newWorld(t, 'a')
	chain, expect := w.signerOf(t, "scoring", "2026.11")
	id := wire.UnitIDOf(publicKeyInfo(&unitKey("a").PublicKey))
	release := tasks[strings.Index(tasks, `[task.scoring.release."2026.11"]`):]
	for _, tt := range []struct {
		name  string
		edits []string
		want  attest.Reason
	}{
		{"nothing", nil, ""},
		{"its id", []string{"calls = [\"keys\"]\n", "calls = [\"keys\"]\ncut_units = [\"" + id.String() + "\"]\n"}, wire.CutOff},
		{"another id", []string{"calls = [\"keys\"]\n", "calls = [\"keys\"]\ncut_units = [\"" + strings.Repeat("a", 32) + "\"]\n"}, ""},
		{"its release", []string{release, ""}, wire.CutOff},
		{"its code", []string{strings.Repeat("6", 64), strings.Repeat("7", 64)}, wire.CutOff},
		{"its task", []string{tasks[strings.Index(tasks, "[task.scoring]"):], ""}, wire.CutOff},
		{"the roots of its platform", []string{strings.Repeat("1", 64), strings.Repeat("8", 64)}, wire.CutOff},
		{"its release is retired", []string{"[task.scoring.release.\"2026.11\"]\n", "[task.scoring.release.\"2026.11\"]\nretired = true\n"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			next := w.next(tt.edits...)
			for name, edit := range map[string]func(*Expect){
				"a pinned identity": func(*Expect) {},
				"pinned code": func(e *Expect) {
					e.IDs, e.Measurements = nil, w.policy.Document().Tasks["scoring"].Releases["2026.11"].References
				},
				"the task by name": func(e *Expect) { e.IDs, _ = LiveIDs(next.policy, "scoring") },
			} {
				e := expect
				if _, err := Check(chain, w.root(t), e); err != nil {
					t.Fatalf("%s, before: %v", name, err)
				}
				e.Policy = next.policy
				edit(&e)
				if len(e.IDs)+len(e.Measurements) == 0 {
					continue // the task is gone, so there is no identity to expect
				}
				_, err := Check(chain, w.root(t), e)
				if tt.want != "" {
					testworld.Refused(t, err, tt.want)
				} else if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
}

// cutScoring returns edits of the test policy that cut off a unit of task scoring.
func cutScoring(unit string) []string {
	return []string{"calls = [\"keys\"]\n", "calls = [\"keys\"]\ncut_units = [\"" + strings.Repeat(unit, 32) + "\"]\n"}
}

// TestSharedLeafNamesCut: a cut gives a new shared leaf and key, and the leaf names the cut. A
// checker that knows the cut refuses the old leaf. A checker that does not know it refuses the
// new leaf with "behind", so that it fetches the history.
func TestSharedLeafNamesCut(t *testing.T) {
	before := newWorld(t, 'a')
	cut := before.next(cutScoring("a")...)
	back := cut.next("cut_units = [\""+strings.Repeat("a", 32)+"\"]\n", "")
	keys := map[string]string{}
	for name, w := range map[string]*world{"before": before, "cut": cut, "taken back": back} {
		leaf := testworld.Must(w.issuer.SharedLeaf(w.grant(t, "scoring", "2026.11"), noon))
		keys[name] = string(publicKeyInfo(&leaf.Key.PublicKey))
		p, err := Check(w.sharedChain(t), w.root(t), w.expectShared(t))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := attest.Digest{}
		if name != "before" {
			want = cut.policy.PolicyHead()
		}
		if p.PolicyHead() != want || p.Facts().Head != want || !p.Facts().Shared {
			t.Errorf("%s: got cut %v, want %v", name, p.PolicyHead(), want)
		}
	}
	if keys["before"] == keys["cut"] || keys["cut"] != keys["taken back"] {
		t.Error("the pair does not follow the last cut")
	}
	_, err := Check(before.sharedChain(t), before.root(t), cut.expectShared(t))
	testworld.Refused(t, err, wire.CutOff)
	_, err = Check(before.sharedChain(t), before.root(t), back.expectShared(t))
	testworld.Refused(t, err, wire.CutOff)
	_, err = Check(cut.sharedChain(t), before.root(t), before.expectShared(t))
	testworld.Refused(t, err, wire.Behind)
}

// TestSharedKeyNeverReturns: shared leaves of different windows never have the same key, whatever
// lifetimes the policy had in between.
func TestSharedKeyNeverReturns(t *testing.T) {
	w := newWorld(t, 'a')
	ends := map[string]time.Time{}
	lives := []string{"1h", "61m", "3660s", "2h", "30m"}
	for _, life := range lives {
		v := w
		if life != "1h" {
			v = w.next(`lifetime = "1h"`, `lifetime = "`+life+`"`)
		}
		grant := v.grant(t, "scoring", "2026.11")
		today := testworld.Must(windowAt(grant.LeafLifetime(), noon)).index
		for _, index := range []uint64{today, today + 1, testworld.Must(windowAt(time.Hour, noon)).index} {
			leaf := testworld.Must(v.issuer.SharedLeaf(grant, windowBegin(index, grant.LeafLifetime()).Add(time.Second)))
			key := string(testworld.Must(leaf.Key.Bytes()))
			if end, again := ends[key]; again && !end.Equal(leaf.NotAfter) {
				t.Errorf("life %s: the key of the pair that ended %v is back in the one that ends %v", life, end, leaf.NotAfter)
			}
			ends[key] = leaf.NotAfter
		}
	}
	// Every 61st window of an hour begins with a 60th window of 61 minutes.
	hour, more := w.grant(t, "scoring", "2026.11"), w.next(`lifetime = "1h"`, `lifetime = "61m"`)
	index := testworld.Must(windowAt(time.Hour, noon)).index / 61 * 61
	at := windowBegin(index, time.Hour).Add(time.Second)
	one, two := testworld.Must(w.issuer.SharedLeaf(hour, at)), testworld.Must(more.issuer.SharedLeaf(more.grant(t, "scoring", "2026.11"), at))
	if !parse(t, one.DER)[0].NotBefore.Equal(parse(t, two.DER)[0].NotBefore) || one.Key.Equal(two.Key) {
		t.Error("two pairs that begin together and end apart have one key, or do not begin together")
	}
	if got, want := len(ends), 3*(len(lives)-1)-1; got != want { // 61m and 3660s are equal; of 1h two windows are equal
		t.Errorf("got %d keys, want %d", got, want)
	}
}

// TestSharedKeyVector: the key depends on identity, role, begin, end and cut alone.
func TestSharedKeyVector(t *testing.T) {
	w := newWorld(t, 'a').next(cutScoring("a")...)
	leaf := testworld.Must(w.issuer.SharedLeaf(w.grant(t, "scoring", "2026.11"), noon))
	c := parse(t, leaf.DER)[0]
	id, cut := testworld.Must(ReleaseID(w.policy, "scoring", "2026.11")), w.policy.PolicyHead()
	key := testworld.Must(w.keys.secret.deriveSigningKey(wire.LabelLeafKey, id[:], nil, wire.Uint64(uint64(c.NotBefore.Unix())), wire.Uint64(uint64(c.NotAfter.Unix())), cut[:]))
	if !key.Equal(leaf.Key) {
		t.Error("got another key")
	}
}

// TestRetired: nothing new is issued for a retired release, and its units' certificates stay
// valid.
func TestRetired(t *testing.T) {
	w := newWorld(t, 'a')
	chain, expect := w.signerOf(t, "scoring", "2026.11")
	shared := w.sharedChain(t)
	next := w.next("[task.scoring.release.\"2026.11\"]\n", "[task.scoring.release.\"2026.11\"]\nretired = true\n",
		"[task.keys.release.\"1.4\"]\n", "[task.keys.release.\"1.4\"]\nretired = true\n")
	_, err := next.issuer.SharedLeaf(next.grant(t, "scoring", "2026.11"), noon)
	testworld.Refused(t, err, wire.Retired)
	_, err = next.issuer.UnitLeaf(next.grant(t, "scoring", "2026.11"), unitKey("a").Public(), noon)
	testworld.Refused(t, err, wire.Retired)
	_, err = next.issuer.UnitTLSLeaf(next.grant(t, "keys", "1.4"), unitKey("a").Public(), wire.UnitID{1}, noon)
	testworld.Refused(t, err, wire.Retired)
	expect.Policy = next.policy
	if _, err := Check(chain, w.root(t), expect); err != nil {
		t.Errorf("the unit that has its certificate: %v", err)
	}
	if _, err := Check(shared, w.root(t), next.expectShared(t)); err != nil {
		t.Errorf("the pair that it has: %v", err)
	}
	if ids := testworld.Must(LiveIDs(next.policy, "scoring")); len(ids) != 2 {
		t.Errorf("got %d live releases, want both", len(ids))
	}
	again := next.next("retired = true\n", "")
	testworld.Must(again.issuer.UnitLeaf(again.grant(t, "scoring", "2026.11"), unitKey("a").Public(), noon))
}

// TestHeadOfLeaves: a unit's leaf names the policy head under which it was issued, including
// heads of statements. CA certificates keep the same bytes.
func TestHeadOfLeaves(t *testing.T) {
	first := agreed(t, 1)
	later := first.said(t, "trial", "north", nil)
	for name, w := range map[string]*world{"first": first, "later": later} {
		chain, expect := w.signerOf(t, "keys", "1.4")
		if p, err := Check(chain, w.root(t), expect); err != nil || p.PolicyHead() != w.policy.PolicyHead() {
			t.Errorf("%s: got head %v, %v, want %v", name, p.PolicyHead(), err, w.policy.PolicyHead())
		}
	}
	if a, b := first.issuer.AuthorityRoot(), later.issuer.AuthorityRoot(); !bytes.Equal(a, b) {
		t.Error("a step changed the authority root's certificate")
	}
}

// TestMemberOfLeaves: the leaf of a unit in a group names its program and its party; the shared
// leaf of its role names neither.
func TestMemberOfLeaves(t *testing.T) {
	w := agreed(t, 1)
	scorer, key := w.scorer(t), unitKey("a")
	signer := testworld.Must(w.issuer.UnitLeaf(scorer, key.Public(), noon))
	e := w.expectScorer()
	p := testworld.Must(Check(w.roleChain(t, scorer), w.root(t), e))
	if task, release := p.Member(); task != "" || release != "" || !p.Party().IsZero() {
		t.Errorf("pair: got %q %q %v", task, release, p.Party())
	}
	e.Use = UseSigning
	p = testworld.Must(Check(parse(t, testworld.Must(w.issuer.GroupIdentity(scorer.GroupState)).Signing(signer.DER)...), w.root(t), e))
	task, release := p.Member()
	if want := party("south").Digest(); task != "scoring" || release != "2026.11" || p.Party() != want {
		t.Errorf("unit: got %q %q %v, want the member of south, %v", task, release, p.Party(), want)
	}
}
