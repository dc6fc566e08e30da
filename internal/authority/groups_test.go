package authority

import (
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// grouped returns a world with a group of keys and scoring, which both of its parties must
// approve. edits are those of newWorld.
func grouped(t testing.TB, edits ...string) *world {
	t.Helper()
	return groupedUnder(t, 2, "", edits...)
}

// groupedOf is grouped with a quorum of the two parties.
func groupedOf(t testing.TB, quorum int, edits ...string) *world {
	t.Helper()
	return groupedUnder(t, quorum, "", edits...)
}

// groupedUnder is groupedOf with a line by which the group names its authorities. If it is empty,
// they are those of the domain.
func groupedUnder(t testing.TB, quorum int, authority string, edits ...string) *world {
	t.Helper()
	parties := map[string]testworld.Key{"north": testworld.NewKey(), "south": testworld.NewKey()}
	w := newWorld(t, append(edits, "[task.keys]\n", fmt.Sprintf(`[group.trial]
key_mode = "shared"
quorum = %d
until = 2026-12-20T00:00:00Z
%sparty = [ { name = "north", ssh = %q }, { name = "south", ssh = %q } ]
[group.trial.role]
holder = { members = [ { party = "north", task = "keys", release = "1.4" } ], calls = ["scorer"] }
scorer = { members = [ { party = "south", task = "scoring", release = "2026.11" } ] }
[task.keys]
`, quorum, authority, parties["north"].AuthorizedKey(), parties["south"].AuthorizedKey()))...)
	for name, key := range parties {
		w.Keys[name] = key
	}
	return w
}

// say sends a party's statement to an authority.
func (w *world) say(a *Authority, party string, change func(*policy.Statement)) (api.StatementReceipt, error) {
	w.T.Helper()
	p := a.inForce().approved.GroupByName("trial")
	s, err := p.Statement(w.Keys[party].Digest(), a.inForce().groups.RootDigest(p))
	if err != nil {
		w.T.Fatal(err)
	}
	if change != nil {
		change(&s)
	}
	return a.addStatement(w.T.Context(), "trial", api.SignedStatement{Statement: s.Bytes(), Signature: w.Signature(party, s.Namespace(), string(s.Bytes()))})
}

func withdraws(s *policy.Statement) { s.Withdraws = true }

// holder returns a unit that enrols in the role holder.
func (w *world) holder() *applicant {
	p := w.applicant("keys")
	p.task, p.tls = "", nil
	p.group, p.role, p.party = "trial", "holder", "north"
	return p
}

func TestGroupReport(t *testing.T) {
	w := grouped(t)
	a := w.open()
	_, err := w.holder().enrol(direct{a})
	testworld.Refused(t, err, wire.NoQuorum)
	if err := a.recordRefusal(t.Context(), api.CertificateRequest{Group: "trial", Role: "holder"}, err); err != nil {
		t.Fatal(err)
	}
	page, err := a.readLogPage(t.Context(), store.Query{Limit: 1})
	if err != nil || len(page.Entries) != 1 || page.Entries[0].Group != "trial" || page.Entries[0].Role != "holder" {
		t.Errorf("log: got %+v, %v, want the refusal of group trial, role holder", page.Entries, err)
	}
	w.agree(a)
	one, err := w.holder().enrol(direct{a})
	if err != nil {
		t.Fatal(err)
	}
	p := a.inForce().approved.GroupByName("trial")
	if one.Group != "trial" || one.Role != "holder" || one.Task != "keys" || one.Identity != p.ID() || string(one.Roster) != string(p.Roster.Bytes()) || len(one.Approvals) != 2 {
		t.Errorf("got report for %q %q %q, identity %v, %d approvals", one.Group, one.Role, one.Task, one.Identity, len(one.Approvals))
	}
	two, err := w.scorer().enrol(direct{a})
	if err != nil {
		t.Fatal(err)
	}
	if string(one.LeafKey) == string(two.LeafKey) || string(one.Rings.Strict.Current.Key) == string(two.Rings.Strict.Current.Key) {
		t.Error("two roles share a pair or a ring")
	}
	if string(one.Rings.Follow.Current.Key) != string(two.Rings.Follow.Current.Key) {
		t.Error("two roles do not share the ring of the whole group")
	}
	again, err := w.holder().enrol(direct{w.open()})
	if err != nil || string(again.Leaf) != string(one.Leaf) {
		t.Errorf("another authority of the store issues another leaf: %v", err)
	}
}

func TestGroupRequestRefusals(t *testing.T) {
	w := grouped(t)
	a := w.open()
	for name, spoil := range map[string]func(*applicant){
		"task and group":       func(p *applicant) { p.task = "keys" },
		"group without a role": func(p *applicant) { p.role = "" },
		"role without a group": func(p *applicant) { p.group = "" },
	} {
		t.Run(name, func(t *testing.T) {
			p := w.holder()
			spoil(p)
			_, err := p.enrol(direct{a})
			testworld.Refused(t, err, wire.BadRequest)
		})
	}
	p := w.holder()
	p.tls = newKey(t)
	_, err := p.enrol(direct{a})
	testworld.Refused(t, err, wire.BadCSR)
	if _, err := w.say(a, "north", nil); err != nil {
		t.Fatal(err)
	}
	signed := a.inForce().approved.GroupByName("trial").SignedStatements()[0]
	if _, err := a.addStatement(t.Context(), "trial", api.SignedStatement(signed)); err != nil {
		t.Errorf("the same statement again, as after a lost answer: %v", err)
	}
	_, err = a.addStatement(t.Context(), "tribe", api.SignedStatement(signed))
	testworld.Refused(t, err, wire.WrongGroup)
}

// scorer returns a unit that enrols in the role scorer.
func (w *world) scorer() *applicant {
	p := w.scoring()
	p.task, p.group, p.role, p.party = "", "trial", "scorer", "south"
	return p
}

// agreed returns an authority of a group that both parties have approved.
func (w *world) agreed() *Authority {
	w.T.Helper()
	a := w.open()
	w.agree(a)
	return a
}

// agree sends both parties' approvals of the group.
func (w *world) agree(a *Authority) {
	w.T.Helper()
	for _, party := range []string{"north", "south"} {
		if _, err := w.say(a, party, nil); err != nil {
			w.T.Fatal(err)
		}
	}
}

// TestMemberLeaves: the next roster has no scorer. From then on the scorer gets no certificate,
// and no key that it has seals a new session: neither in the old group, which continues
// meanwhile, nor in the new one after its parties approve it.
func TestMemberLeaves(t *testing.T) {
	w := grouped(t, `delay = "1h"`, `delay = "0s"`)
	a := w.agreed()
	held := testworld.Must(w.scorer().enrol(direct{a})).Rings
	whole := testworld.Must(w.holder().enrol(direct{a})).Rings.Follow
	former := a.inForce().approved.GroupByName("trial").ID()
	w.change(a, "[group.trial.role]\n", "continues = \""+former.String()+"\"\n[group.trial.role]\n", `, calls = ["scorer"]`, "",
		`scorer = { members = [ { party = "south", task = "scoring", release = "2026.11" } ] }`+"\n", "")

	_, err := w.scorer().enrol(direct{a})
	testworld.Refused(t, err, wire.NotFound)
	meanwhile := testworld.Must(w.holder().enrol(direct{a}))
	if meanwhile.Identity != former {
		t.Errorf("got identity %v while nobody approved the next, want %v", meanwhile.Identity, former)
	}
	wantCut(t, "the whole group's", whole, meanwhile.Rings.Follow)
	w.agree(a)
	next := testworld.Must(w.holder().enrol(direct{a}))
	if n := shared(keysOf(held.Strict, held.Follow), keysOf(next.Rings.Strict, next.Rings.Follow)); next.Identity == former || n != 0 {
		t.Errorf("got identity %v after %v, with %d keys of the member that left", next.Identity, former, n)
	}
}

// TestGroupGrows: a roster that keeps all members replaces no ring keys.
func TestGroupGrows(t *testing.T) {
	w := grouped(t, `delay = "1h"`, `delay = "0s"`)
	a := w.agreed()
	before := testworld.Must(w.holder().enrol(direct{a})).Rings
	w.change(a, "[group.trial.role]\n", "continues = \""+a.inForce().approved.GroupByName("trial").ID().String()+"\"\n[group.trial.role]\n", `, calls = ["scorer"]`, "")
	after := testworld.Must(w.holder().enrol(direct{a})).Rings
	wantKey(t, "the role's next", after.Strict.Next, before.Strict.Next)
	wantKey(t, "the whole group's next", after.Follow.Next, before.Follow.Next)
}

// TestCutMember cuts off one unit of a group by its id. The unit gets no further certificate,
// although the group's identity stays, and no key that it has seals a new session of its role or
// of the whole group.
func TestCutMember(t *testing.T) {
	w := grouped(t)
	a := w.agreed()
	bad, good, holder := w.scorer(), w.scorer(), w.holder()
	before := testworld.Must(bad.enrol(direct{a}))
	id := wire.UnitIDOf(testworld.Must(x509.MarshalPKIXPublicKey(&bad.signing.PublicKey)))
	w.change(a, "calls = [\"keys\"]\n", fmt.Sprintf("calls = [\"keys\"]\ncut_units = [%q]\n", id))

	for _, again := range []*Authority{a, w.open()} {
		_, err := bad.enrol(direct{again})
		testworld.Refused(t, err, wire.CutOff)
	}
	after := testworld.Must(good.enrol(direct{a}))
	if after.Identity != before.Identity {
		t.Errorf("got group %v, want %v as before", after.Identity, before.Identity)
	}
	wantCut(t, "the role's", before.Rings.Strict, after.Rings.Strict)
	wantCut(t, "the whole group's", before.Rings.Follow, after.Rings.Follow)
	wantCut(t, "the whole group's, as another role has it", before.Rings.Follow, testworld.Must(holder.enrol(direct{a})).Rings.Follow)
}

// TestApprovalEnds: a party approves for 20 minutes. Certificates end with the approval, and none
// is issued after it until the party approves again.
func TestApprovalEnds(t *testing.T) {
	w := grouped(t)
	a := w.agreed()
	now, _ := w.clock.Read()
	end := now.Add(20 * time.Minute).UTC().Truncate(time.Second)
	if _, err := w.say(a, "north", func(s *policy.Statement) { s.NotAfter = end }); err != nil {
		t.Fatal(err)
	}
	if r := testworld.Must(w.holder().enrol(direct{a})); r.NotAfter.After(end) {
		t.Errorf("got a certificate until %v, want %v at most", r.NotAfter, end)
	}
	w.clock.Advance(20 * time.Minute)
	_, err := w.holder().enrol(direct{a})
	testworld.Refused(t, err, wire.NoQuorum)
	_, err = w.say(a, "north", func(s *policy.Statement) { s.NotAfter = end })
	testworld.Refused(t, err, wire.Expired)
	w.agree(a)
	testworld.Must(w.holder().enrol(direct{a}))
}

// TestHeardIsSigned: the authority signs the acknowledgement of a statement, for this statement
// and this head.
func TestHeardIsSigned(t *testing.T) {
	w := grouped(t)
	a := w.open()
	h, err := w.say(a, "north", nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf := testworld.Must(x509.ParseCertificate(h.Chain[0]))
	if err := leaf.CheckSignature(x509.ECDSAWithSHA256, api.StatementReceiptMessage(h), h.Signature); err != nil || h.Head != a.inForce().approved.PolicyHead() {
		t.Errorf("got %v, head %v", err, h.Head)
	}
	h.Head[0]++
	if leaf.CheckSignature(x509.ECDSAWithSHA256, api.StatementReceiptMessage(h), h.Signature) == nil {
		t.Error("the signature holds for another head")
	}
}

// TestWithdrawWhileIssuing: units enrol at two authorities of one store while a party withdraws.
// Once the withdrawal is acknowledged, nothing more is issued.
func TestWithdrawWhileIssuing(t *testing.T) {
	rounds := 20
	if os.Getenv("COHORT_FULL") != "" && !testing.Short() {
		rounds = 1000
	}
	const perWorld = 50 // bounds the history that each start replays
	for done := 0; done < rounds; done += perWorld {
		w := grouped(t)
		one, two := w.open(), w.open()
		if _, err := w.say(one, "south", nil); err != nil {
			t.Fatal(err)
		}
		for range min(perWorld, rounds-done) {
			w.clock.Advance(history.StatementEvery)
			if _, err := w.say(one, "north", nil); err != nil {
				t.Fatal(err)
			}
			if err := two.history.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			withdrawWhileIssuing(t, w, one, two)
		}
	}
}

func withdrawWhileIssuing(t *testing.T, w *world, withdrawnAt, other *Authority) {
	t.Helper()
	var units sync.WaitGroup
	for _, a := range []*Authority{withdrawnAt, other, other} {
		p := w.holder()
		units.Go(func() { _, _ = p.enrol(direct{a}) }) // the log is checked, not the response
	}
	if _, err := w.say(withdrawnAt, "north", withdraws); err != nil {
		t.Fatal(err)
	}
	acknowledged := issued(t, withdrawnAt)
	units.Wait()
	_, err := w.holder().enrol(direct{other})
	testworld.Refused(t, err, wire.NoQuorum)
	if after := issued(t, withdrawnAt); after != acknowledged {
		t.Fatalf("%d certificates after the acknowledged withdrawal", after-acknowledged)
	}
}
