package authority

import (
	"testing"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// said returns a party's next statement, changed and then signed.
func (w *world) said(a *Authority, party string, change func(*policy.Statement)) api.SignedStatement {
	w.T.Helper()
	snap := a.inForce()
	p := snap.approved.GroupByName("trial")
	s, err := p.Statement(w.Keys[party].Digest(), snap.groups.RootDigest(p))
	if err != nil {
		w.T.Fatal(err)
	}
	if change != nil {
		change(&s)
	}
	return api.SignedStatement{Statement: s.Bytes(), Signature: w.Signature(party, s.Namespace(), string(s.Bytes()))}
}

// TestOwnConsent: with a quorum of one of two parties, the program of a party without a
// statement, or of a party that withdrew, gets no certificate.
func TestOwnConsent(t *testing.T) {
	w := groupedOf(t, 1)
	a := w.open()
	testworld.Must(w.say(a, "south", nil))
	if _, err := w.scorer().enrol(direct{a}); err != nil {
		t.Errorf("the party that approves: %v", err)
	}
	_, err := w.holder().enrol(direct{a})
	testworld.Refused(t, err, wire.NoQuorum)
	testworld.Must(w.say(a, "north", nil))
	testworld.Must(w.holder().enrol(direct{a}))
	testworld.Must(w.say(a, "north", withdraws))
	_, err = w.holder().enrol(direct{a})
	testworld.Refused(t, err, wire.Withdrawn)
	if _, err := w.scorer().enrol(direct{a}); err != nil {
		t.Errorf("the party that still approves: %v", err)
	}
}

// TestOldStatementsAgain: no replayed statement, and none made from an earlier one, undoes a
// withdrawal, whatever its number.
func TestOldStatementsAgain(t *testing.T) {
	for name, number := range map[string]uint64{"the next number": 2, "the highest number": 1 + 1<<32} {
		t.Run(name, func(t *testing.T) {
			w := grouped(t)
			a := w.open()
			testworld.Must(w.say(a, "south", nil))
			old := w.said(a, "north", nil)
			testworld.Must(a.addStatement(t.Context(), "trial", old))
			testworld.Must(w.holder().enrol(direct{a}))
			for _, wraps := range []uint64{1<<64 - 1, 1 << 63, 0} {
				_, err := a.addStatement(t.Context(), "trial", w.said(a, "north", func(s *policy.Statement) { s.Withdraws, s.Number = true, wraps }))
				testworld.Refused(t, err, wire.Malformed)
			}
			testworld.Must(a.addStatement(t.Context(), "trial", w.said(a, "north", func(s *policy.Statement) { s.Withdraws, s.Number = true, number })))
			head := a.inForce().approved.PolicyHead()
			_, err := a.addStatement(t.Context(), "trial", old)
			testworld.Refused(t, err, wire.WrongSequence)
			renumbered := w.said(a, "north", func(s *policy.Statement) { s.Number = number + 1 })
			renumbered.Signature = old.Signature
			_, err = a.addStatement(t.Context(), "trial", renumbered)
			testworld.Refused(t, err, wire.BadSignature)
			_, err = w.holder().enrol(direct{a})
			testworld.Refused(t, err, wire.NoQuorum)
			if a.inForce().approved.PolicyHead() != head {
				t.Error("a refused statement is in the history")
			}
			testworld.Must(w.say(a, "north", nil))
			testworld.Must(w.holder().enrol(direct{a}))
		})
	}
}

// TestStatementRate: a key may add a bounded number of statements. Other keys are not affected,
// its own withdrawal is always accepted, and no other key can use up its bucket.
func TestStatementRate(t *testing.T) {
	w := grouped(t)
	a := w.open()
	forged := w.said(a, "north", nil)
	forged.Signature = w.Signature("ana", sshsig.ForApprove, string(forged.Statement))
	for range 2 * history.StatementBurst {
		_, err := a.addStatement(t.Context(), "trial", forged)
		testworld.Refused(t, err, wire.NotOwner)
	}
	for range history.StatementBurst {
		testworld.Must(w.say(a, "north", nil))
	}
	_, err := w.say(a, "north", nil)
	testworld.Refused(t, err, wire.TooMany)
	testworld.Must(w.say(a, "south", nil))
	testworld.Must(w.say(a, "north", withdraws))
	for _, change := range []func(*policy.Statement){nil, withdraws} {
		_, err = w.say(a, "north", change)
		testworld.Refused(t, err, wire.TooMany)
	}
	w.clock.Advance(history.StatementEvery)
	testworld.Must(w.say(a, "north", nil))
	_, err = w.say(a, "north", nil)
	testworld.Refused(t, err, wire.TooMany)
	testworld.Must(w.holder().enrol(direct{a}))
	testworld.Must(w.scoring().enrol(direct{a}))
}

// TestTwoTextsAtOnce: two authorities receive two statements with one number. Both become steps,
// and until a statement with a higher number the party counts as withdrawn.
func TestTwoTextsAtOnce(t *testing.T) {
	w := grouped(t)
	one, two := w.open(), w.open()
	testworld.Must(w.say(one, "south", nil))
	approval, withdrawal := w.said(one, "north", nil), w.said(one, "north", withdraws)
	testworld.Must(one.addStatement(t.Context(), "trial", approval))
	heard := testworld.Must(two.addStatement(t.Context(), "trial", withdrawal))
	if heard.Head == one.inForce().approved.PolicyHead() {
		t.Error("the second text is no step of its own")
	}
	for _, a := range []*Authority{one, two} {
		_, err := w.holder().enrol(direct{a})
		testworld.Refused(t, err, wire.NoQuorum)
		for _, again := range []api.SignedStatement{approval, withdrawal} { // repeated, as after a lost response
			if h := testworld.Must(a.addStatement(t.Context(), "trial", again)); h.Head != heard.Head {
				t.Errorf("got head %v for a statement that was heard, want %v", h.Head, heard.Head)
			}
		}
	}
	testworld.Must(w.say(two, "north", nil))
	testworld.Must(w.holder().enrol(direct{two}))
}
