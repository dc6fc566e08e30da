package authority

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// version returns the n-th of many policies that tighten, each a different proposal.
func (w *world) version(a *Authority, n int) string {
	return w.NextText(a.inForce().approved, tighter...) + fmt.Sprintf("# %d\n", n)
}

// withdraw cancels a proposal as an owner.
func (w *world) withdraw(a *Authority, name, text string) error {
	statement := policy.CancelStatement(a.inForce().approved, wire.Sum([]byte(text)))
	_, err := a.history.Cancel(w.T.Context(), wire.Sum([]byte(text)), api.CancelRequest{
		Statement: statement, Signature: w.Signature(name, sshsig.ForCancel, string(statement)),
	})
	return err
}

// TestProposalFlood: for a year, the thief of one owner's key proposes as much as possible, lets
// proposals expire, and cancels them. The other owners can still propose and sign, and a step
// with a quorum removes the key.
func TestProposalFlood(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	flood := func(from, n int) (taken int) {
		for i := range n {
			_, err := a.history.Propose(t.Context(), proposal(w.SignPolicy(w.version(a, from+i), "eva")))
			if err == nil {
				taken++
			} else if wire.ReasonOf(err) != wire.TooMany || !strings.Contains(err.Error(), "eva") {
				t.Fatalf("proposal %d: got %v, want [%s] that names the proposer", i, err, wire.TooMany)
			}
		}
		return taken
	}
	if got := flood(0, 80); got != history.MaxPending {
		t.Errorf("took %d proposals of one owner, want %d", got, history.MaxPending)
	}
	pending := w.version(a, 1000)
	if _, err := a.history.Propose(t.Context(), proposal(w.SignPolicy(pending, "ana"))); err != nil {
		t.Fatalf("another owner beside the flood: %v", err)
	}
	for i := range history.MaxPending { // cancelled proposals no longer count, and are not kept for ever
		if err := w.withdraw(a, "eva", w.version(a, i)); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 12 {
		w.clock.Advance(169 * time.Hour)
		flood(2000+100*round, history.MaxPending+1)
	}
	if n := len(testworld.Must(a.history.ShowProposals(t.Context())).Proposals); n > 1+history.MaxPending+history.MaxOver+1 {
		t.Errorf("the store keeps %d proposals of one owner", n)
	}
	out := w.NextText(a.inForce().approved, fmt.Sprintf(`{ name = "eva", ssh = %q }`, w.Keys["eva"].AuthorizedKey()), "")
	p, err := a.history.Propose(t.Context(), proposal(w.SignPolicy(out, "ana", "ben")))
	if err != nil || p.State == "pending" {
		t.Fatalf("the step that takes the key out: state %q, %v", p.State, err)
	}
	w.wait(a, time.Hour)
	if got := a.inForce().document(); got.Sequence != 2 || len(got.Owners.Keys) != 2 {
		t.Errorf("got policy %d with %d owners, want 2 with 2", got.Sequence, len(got.Owners.Keys))
	}
}

// TestQuorumNeedsNoRoom: a proposal with a quorum is accepted, even from an owner who has reached
// the bound.
func TestQuorumNeedsNoRoom(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	for i := range history.MaxPending {
		testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.version(a, i), "eva"))))
	}
	p, err := a.history.Propose(t.Context(), proposal(w.SignPolicy(w.version(a, history.MaxPending), "eva", "ben")))
	if err != nil || p.State != "adopted" {
		t.Errorf("got state %q, %v, want adopted", p.State, err)
	}
}

// TestProposalsOfBefore: proposals that follow an earlier policy do not count against any owner.
func TestProposalsOfBefore(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	for i := range history.MaxPending {
		testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.version(a, i), "eva"))))
	}
	w.change(a, tighter...)
	text := w.NextText(a.inForce().approved, "lifetime = \"20m\"", "lifetime = \"15m\"")
	if _, err := a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "eva"))); err != nil {
		t.Error(err)
	}
}

// TestOverWithItsSignatures: a client replays the public signatures of a cancelled proposal. They
// do not revive it, even after its row was in danger of removal.
func TestOverWithItsSignatures(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	text := w.NextText(a.inForce().approved, looser...)
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ana", "ben"))))
	if err := w.withdraw(a, "ana", text); err != nil {
		t.Fatal(err)
	}
	for round := range 10 { // no other proposals make the authority forget the cancelled one
		for i := range history.MaxPending {
			testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.version(a, 10*round+i), "eva"))))
			if err := w.withdraw(a, "eva", w.version(a, 10*round+i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, names := range [][]string{{"ana", "ben"}, {"ben", "ana"}, {"ben"}, {"eva", "ben"}} {
		_, err := a.history.Propose(t.Context(), proposal(w.SignPolicy(text, names...)))
		testworld.Refused(t, err, wire.ProposalOver)
	}
}

// TestCancelledByAThief: a stolen key proposes the owners' file first and cancels it. The owners
// can still adopt it.
func TestCancelledByAThief(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	text := w.NextText(a.inForce().approved, tighter...)
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "eva"))))
	if err := w.withdraw(a, "eva", text); err != nil {
		t.Fatal(err)
	}
	p, err := a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ana", "ben")))
	if err != nil || p.State != "adopted" {
		t.Errorf("got state %q, %v, want adopted", p.State, err)
	}
}

// TestRottenProposal damages a proposal's row in each way. Other proposals still work, the same
// file can be proposed again, and the list names the damaged row.
func TestRottenProposal(t *testing.T) {
	for name, statement := range map[string]string{
		"content": `UPDATE proposals SET content = CAST('rotten' AS BLOB)`,
		"tag":     `UPDATE proposals SET mac = zeroblob(32)`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := w.open()
			text := w.version(a, 1)
			testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ana"))))
			exec(t, w.dsn, statement)
			all := testworld.Must(a.history.ShowProposals(t.Context()))
			if len(all.Proposals) != 0 || len(all.Damaged) != 1 || !strings.Contains(all.Damaged[0], wire.Sum([]byte(text)).Hex()) {
				t.Errorf("got %d proposals and %q, want none, and the row named", len(all.Proposals), all.Damaged)
			}
			if _, err := a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ana"))); err != nil {
				t.Errorf("the same file again: %v", err)
			}
			p, err := a.history.Propose(t.Context(), proposal(w.SignPolicy(w.version(a, 2), "ana", "ben")))
			if err != nil || p.State != "adopted" {
				t.Errorf("another file: state %q, %v", p.State, err)
			}
		})
	}
}

// TestListIsBounded: the list of proposals contains no files, because an owner may make them
// large.
func TestListIsBounded(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.version(a, 1), "ana"))))
	all := testworld.Must(a.history.ShowProposals(t.Context()))
	if p := all.Proposals[0]; p.Policy != nil || p.Signatures != nil {
		t.Error("the list carries a file and its signatures")
	}
	if p := testworld.Must(a.history.ShowProposal(t.Context(), all.Proposals[0].Digest)); len(p.Policy) == 0 || len(p.Signatures) != 1 {
		t.Error("a proposal by its digest comes without its file or signature")
	}
}
