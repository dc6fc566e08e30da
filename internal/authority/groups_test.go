package authority

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"golang.org/x/crypto/ssh"
)

// grouped is a world with a group of keys and scoring, which both of its parties
// must approve.
func grouped(t testing.TB) *world {
	t.Helper()
	w := &world{}
	parties := map[string]ssh.Signer{"north": newOwner(t), "south": newOwner(t)}
	line := func(name string) string {
		return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(parties[name].PublicKey())))
	}
	w = newWorld(t, "[task.keys]\n", fmt.Sprintf(`[group.trial]
key_mode = "shared"
quorum = 2
until = 2026-12-20T00:00:00Z
party = [ { name = "north", ssh = %q }, { name = "south", ssh = %q } ]
[group.trial.role]
holder = { members = [ { party = "north", task = "keys", release = "1.4" } ], calls = ["scorer"] }
scorer = { members = [ { party = "south", task = "scoring", release = "2026.11" } ] }
[task.keys]
`, line("north"), line("south")))
	for name, key := range parties {
		w.owners[name] = key
	}
	return w
}

// say lets a party say it to an authority.
func (w *world) say(a *Authority, party string, change func(*policy.Statement)) (api.Heard, error) {
	w.t.Helper()
	p := a.current.Load().approved.Pact("trial")
	s := policy.Statement{TrustDomain: "clinic.example", Genesis: a.Genesis(), Group: p.ID(), Party: party, Number: p.Next(party), NotAfter: p.Group.Until}
	if change != nil {
		change(&s)
	}
	return a.hear(w.t.Context(), "trial", api.Said{Statement: s.Bytes(), Signature: w.signature(party, s.Namespace(), string(s.Bytes()))})
}

func withdraws(s *policy.Statement) { s.Withdraws = true }

// holder plays a unit that enrols as a holder.
func (w *world) holder() *applicant {
	p := w.applicant("keys")
	p.task, p.tls = "", nil
	p.group, p.role = "trial", "holder"
	return p
}

func TestGroupReport(t *testing.T) {
	w := grouped(t)
	a := w.open()
	_, err := w.holder().enrol(direct{a})
	wantReason(t, err, wire.NoQuorum)
	if err := a.refused(t.Context(), api.CertificateRequest{Group: "trial", Role: "holder"}, err); err != nil {
		t.Fatal(err)
	}
	page, err := a.page(t.Context(), store.Query{Limit: 1})
	if err != nil || len(page.Entries) != 1 || page.Entries[0].Group != "trial" || page.Entries[0].Role != "holder" {
		t.Errorf("log: got %+v, %v, want the refusal of group trial, role holder", page.Entries, err)
	}
	for _, party := range []string{"north", "south"} {
		if _, err := w.say(a, party, nil); err != nil {
			t.Fatal(err)
		}
	}
	one, err := w.holder().enrol(direct{a})
	if err != nil {
		t.Fatal(err)
	}
	p := a.current.Load().approved.Pact("trial")
	if one.Group != "trial" || one.Role != "holder" || one.Task != "keys" || one.Identity != p.ID() || string(one.Roster) != string(p.Roster.Bytes()) || len(one.Approvals) != 2 {
		t.Errorf("got report for %q %q %q, identity %v, %d approvals", one.Group, one.Role, one.Task, one.Identity, len(one.Approvals))
	}
	other := w.scoring()
	other.task, other.group, other.role = "", "trial", "scorer"
	two, err := other.enrol(direct{a})
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
			wantReason(t, err, wire.BadRequest)
		})
	}
	p := w.holder()
	p.tls = newKey(t)
	_, err := p.enrol(direct{a})
	wantReason(t, err, wire.BadCSR)
	if _, err := w.say(a, "north", nil); err != nil {
		t.Fatal(err)
	}
	said := a.current.Load().approved.Pact("trial").Said()[0]
	if _, err := a.hear(t.Context(), "trial", api.Said(said)); err != nil {
		t.Errorf("the same statement again, as after a lost answer: %v", err)
	}
	_, err = a.hear(t.Context(), "tribe", api.Said(said))
	wantReason(t, err, wire.WrongGroup)
}

// TestHeardIsSigned: the acknowledgement is the authority's, for this statement
// and this head.
func TestHeardIsSigned(t *testing.T) {
	w := grouped(t)
	a := w.open()
	h, err := w.say(a, "north", nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf := must(x509.ParseCertificate(h.Chain[0]))
	if err := leaf.CheckSignature(x509.ECDSAWithSHA256, api.HeardMessage(h), h.Signature); err != nil || h.Head != a.current.Load().approved.Head() {
		t.Errorf("got %v, head %v", err, h.Head)
	}
	h.Head[0]++
	if leaf.CheckSignature(x509.ECDSAWithSHA256, api.HeardMessage(h), h.Signature) == nil {
		t.Error("the signature holds for another head")
	}
}

// TestWithdrawWhileIssuing: units enrol at two authorities of one store while a
// party withdraws. Once that is acknowledged nothing more is issued.
func TestWithdrawWhileIssuing(t *testing.T) {
	rounds := 20
	if os.Getenv("COHORT_FULL") != "" && !testing.Short() {
		rounds = 1000
	}
	const perWorld = 50 // so that replaying the history stays short
	for done := 0; done < rounds; done += perWorld {
		w := grouped(t)
		one, two := w.open(), w.open()
		if _, err := w.say(one, "south", nil); err != nil {
			t.Fatal(err)
		}
		for range min(perWorld, rounds-done) {
			if _, err := w.say(one, "north", nil); err != nil {
				t.Fatal(err)
			}
			if err := two.refresh(t.Context()); err != nil {
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
		units.Go(func() { _, _ = p.enrol(direct{a}) }) // what counts is the log
	}
	if _, err := w.say(withdrawnAt, "north", withdraws); err != nil {
		t.Fatal(err)
	}
	acknowledged := issued(t, withdrawnAt)
	units.Wait()
	_, err := w.holder().enrol(direct{other})
	wantReason(t, err, wire.NoQuorum)
	if after := issued(t, withdrawnAt); after != acknowledged {
		t.Fatalf("%d certificates after the acknowledged withdrawal", after-acknowledged)
	}
}
