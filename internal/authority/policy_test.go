package authority

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

func proposal(s policy.Step) api.ProposeRequest {
	return api.ProposeRequest{Policy: s.Policy, Signatures: s.Signatures}
}

// Two edits of the test policy: a shorter lifetime tightens, a further release loosens.
var (
	tighter = []string{"lifetime = \"30m\"", "lifetime = \"20m\""}
	looser  = []string{"[task.scoring]\n", "[task.keys.release.\"1.5\"]\nreference = [ { platform = \"soft\", program = \"" + wire.Sum([]byte("keys-1.5")).String() + "\" } ]\n\n[task.scoring]\n"}
)

// TestApproval follows a proposal over HTTP: it shows which owners are missing, and a policy that
// tightens takes effect at once.
func TestApproval(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	client, _ := w.serve(a)
	text := w.NextText(a.inForce().approved, tighter...)
	digest := wire.Sum([]byte(text))

	p, err := client.Propose(t.Context(), proposal(w.SignPolicy(text, "ben")))
	if err != nil {
		t.Fatal(err)
	}
	if p.State != "pending" || p.Proposer != "ben" || !slices.Equal(p.Missing, []string{"ana", "eva"}) || p.Digest != digest {
		t.Errorf("got %+v, want a pending proposal of ben that ana and eva have not signed", p)
	}
	if all := testworld.Must(client.Proposals(t.Context())); len(all.Proposals) != 1 {
		t.Errorf("got %d proposals, want 1", len(all.Proposals))
	}
	p, err = client.AddSignature(t.Context(), digest, api.SignatureRequest{Signature: w.Signature("eva", sshsig.ForPolicy, text)})
	if err != nil {
		t.Fatal(err)
	}
	if p.State != "adopted" {
		t.Errorf("got state %q, want adopted", p.State)
	}
	if got := testworld.Must(client.Policy(t.Context())); got.Sequence != 2 || got.Digest != digest {
		t.Errorf("got policy %d %v, want 2 %v", got.Sequence, got.Digest, digest)
	}
	h := testworld.Must(client.History(t.Context(), 0))
	if got, err := policy.Replay(a.Genesis(), []policy.Step{history.StepOf(h.Entries[0]), history.StepOf(h.Entries[1])}); err != nil || got.PolicyHead() != h.Head {
		t.Errorf("replaying the history: head %v, error %v, want %v", got.PolicyHead(), err, h.Head)
	}
}

// TestOwnerRefusals: signatures and requests of owners that make no policy are refused.
func TestOwnerRefusals(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	client, _ := w.serve(a)
	text := w.NextText(a.inForce().approved, tighter...)
	digest := wire.Sum([]byte(text))
	testworld.Must(client.Propose(t.Context(), proposal(w.SignPolicy(text, "ana"))))
	w.Keys["mallory"] = testworld.NewKey()

	sign := func(signature string) error {
		_, err := client.AddSignature(t.Context(), digest, api.SignatureRequest{Signature: signature})
		return err
	}
	cancel := func(name, statement string) error {
		_, err := client.Cancel(t.Context(), digest, api.CancelRequest{Statement: []byte(statement), Signature: w.Signature(name, sshsig.ForCancel, statement)})
		return err
	}
	propose := func(s policy.Step) error { _, err := client.Propose(t.Context(), proposal(s)); return err }
	statement := string(policy.CancelStatement(a.inForce().approved, digest))
	rows := []struct {
		name string
		err  error
		want wire.Reason
	}{
		{"one owner twice", sign(w.Signature("ana", sshsig.ForPolicy, text)), wire.NoQuorum},
		{"over another version", sign(w.Signature("ben", sshsig.ForPolicy, text+"\n")), wire.BadSignature},
		{"in another namespace", sign(w.Signature("ben", sshsig.ForCancel, text)), wire.BadSignature},
		{"by nobody's key", sign(w.Signature("mallory", sshsig.ForPolicy, text)), wire.NotOwner},
		{"no signature", sign(""), wire.Malformed},
		{"cancelled by another", cancel("ben", statement), wire.NotOwner},
		{"cancel of another proposal", cancel("ana", strings.Replace(statement, digest.Hex()[:4], "0000", 1)), wire.Malformed},
		{"proposed by nobody", propose(policy.Step{Policy: []byte(text + "# \n")}), wire.NoQuorum},
		{"another sequence", propose(w.SignPolicy(strings.Replace(text, "sequence     = 2", "sequence     = 3", 1), "ana")), wire.WrongSequence},
		{"another root", propose(w.SignPolicy(strings.Replace(text, w.root.String(), digest.String(), 1), "ana", "ben")), wire.WrongRoot},
		{"not a policy", propose(w.SignPolicy("x", "ana")), wire.BadPolicy},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) { testworld.Refused(t, row.err, row.want) })
	}
	if got := testworld.Must(client.Policy(t.Context())).Sequence; got != 1 {
		t.Errorf("got policy %d in force, want 1", got)
	}
	_, err := client.Proposal(t.Context(), a.root.Digest)
	testworld.Refused(t, err, wire.NotFound)

	if err := cancel("ana", statement); err != nil {
		t.Fatal(err)
	}
	testworld.Refused(t, sign(w.Signature("ben", sshsig.ForPolicy, text)), wire.ProposalOver)
	testworld.Refused(t, propose(w.SignPolicy(text, "ana", "ben")), wire.ProposalOver)
}

func TestProposalExpires(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	text := w.NextText(a.inForce().approved, tighter...)
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ana"))))
	w.clock.Advance(168 * time.Hour)
	_, err := a.history.AddSignature(t.Context(), wire.Sum([]byte(text)), api.SignatureRequest{Signature: w.Signature("ben", sshsig.ForPolicy, text)})
	testworld.Refused(t, err, wire.ProposalOver)
	_, err = a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ben", "ana")))
	testworld.Refused(t, err, wire.ProposalOver)
}

// TestDelay proposes a policy that loosens: the proposal shows its delay, and takes effect by
// itself when the delay has ended, not before.
func TestDelay(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	text := w.NextText(a.inForce().approved, looser...)
	p := testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ana", "ben"))))
	if p.State != "waiting" || p.Waited != 0 || p.Delay != 3600 {
		t.Errorf("got state %q, %d s waited of %d s, want waiting, none of 3600", p.State, p.Waited, p.Delay)
	}
	w.wait(a, time.Hour-10*time.Second)
	if got := a.history.Current().Policy().Sequence; got != 1 {
		t.Fatalf("got policy %d before the delay is over, want 1", got)
	}
	if p := testworld.Must(a.history.ShowProposal(t.Context(), p.Digest)); p.Waited < 3540 || p.Waited > 3590 {
		t.Errorf("got %d s waited of %d s, want what has passed", p.Waited, p.Delay)
	}
	w.wait(a, 10*time.Second)
	if got := a.history.Current().Policy().Sequence; got != 2 {
		t.Errorf("got policy %d after the delay, want 2", got)
	}
}

// TestSignaturesAtOnce: two owners sign at the same moment, and both signatures are kept.
func TestSignaturesAtOnce(t *testing.T) {
	w := newWorld(t, "quorum = 2", "quorum = 3")
	w.genesis = w.SignPolicy(string(w.genesis.Policy), w.Owners...)
	a, b := w.open(), w.open()
	text := w.NextText(a.inForce().approved, tighter...)
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ana"))))
	var both sync.WaitGroup
	for name, authority := range map[string]*Authority{"ben": a, "eva": b} {
		signature := w.Signature(name, sshsig.ForPolicy, text)
		both.Go(func() {
			if _, err := authority.history.AddSignature(t.Context(), wire.Sum([]byte(text)), api.SignatureRequest{Signature: signature}); err != nil {
				t.Errorf("%s signs: %v", name, err)
			}
		})
	}
	both.Wait()
	for _, authority := range []*Authority{a, b} {
		if err := authority.history.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := authority.history.Current().Policy().Sequence; got != 2 {
			t.Errorf("got policy %d, want 2", got)
		}
	}
}

// TestCutHistory rolls back the store of a stopped authority. It then does not know the head that
// a unit shows, and issues nothing until the missing steps are pushed.
func TestCutHistory(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	text := w.NextText(a.inForce().approved, looser...)
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(text, "ana", "ben"))))
	w.wait(a, time.Hour)
	seen := a.history.Current().StepsFrom(0)
	exec(t, w.dsn, `DELETE FROM history WHERE step = 2`)
	exec(t, w.dsn, `DELETE FROM proposals`)

	b := w.open()
	client, _ := w.serve(b)
	p := w.scoring()
	r := p.request(testworld.Must(client.Challenge(t.Context())).Nonce, func(r *api.CertificateRequest) { r.Head = seen.Head })
	_, err := client.Certify(t.Context(), r)
	testworld.Refused(t, err, wire.Behind)

	unmarked := api.History{From: 1, Entries: []api.HistoryEntry{{Policy: seen.Entries[1].Policy, Signatures: seen.Entries[1].Signatures}}, Head: seen.Head}
	forged := unmarked
	forged.Entries = []api.HistoryEntry{unmarked.Entries[0]}
	forged.Entries[0].Adopted = make([]byte, 32)
	_, err = client.PushHistory(t.Context(), forged)
	testworld.Refused(t, err, wire.BadSignature)
	unmarked.Entries[0].Adopted = nil
	if got := testworld.Must(client.PushHistory(t.Context(), unmarked)); got.Sequence != 1 {
		t.Errorf("got policy %d after a push without mark, want 1: its delay is not over", got.Sequence)
	}
	if got := testworld.Must(client.PushHistory(t.Context(), seen)); got.Sequence != 2 || got.Head != seen.Head {
		t.Errorf("got policy %d, head %v after a push, want 2, %v", got.Sequence, got.Head, seen.Head)
	}
	again := p.request(testworld.Must(client.Challenge(t.Context())).Nonce, func(r *api.CertificateRequest) { r.Head = seen.Head })
	if _, err := client.Certify(t.Context(), again); err != nil {
		t.Errorf("the request again after the push: %v", err)
	}
}

func TestPushRefusals(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	client, _ := w.serve(a)
	mine := a.history.Current().StepsFrom(0)
	other := w.SignPolicy(w.text(looser...), "ana", "ben")
	fork := w.SignPolicy(strings.Replace(string(mine.Entries[0].Policy), "units", "units", 1)+"# fork\n", "ana", "ben")
	rows := []struct {
		name string
		h    api.History
		want wire.Reason
	}{
		{"another genesis", api.History{Entries: []api.HistoryEntry{{Policy: other.Policy, Signatures: other.Signatures}}}, wire.WrongGenesis},
		{"a gap", api.History{From: 2, Entries: mine.Entries}, wire.WrongSequence},
		{"a negative place", api.History{From: -1, Entries: mine.Entries}, wire.BadRequest},
		{"a step that does not follow", api.History{From: 1, Entries: []api.HistoryEntry{{Policy: fork.Policy, Signatures: fork.Signatures, Adopted: []byte{1}}}}, wire.WrongSequence},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			_, err := client.PushHistory(t.Context(), row.h)
			testworld.Refused(t, err, row.want)
		})
	}
	if got, err := client.PushHistory(t.Context(), mine); err != nil || got.Sequence != 1 {
		t.Errorf("pushing what it has: policy %d, error %v", got.Sequence, err)
	}
}

// TestRolledBackBeneath rolls back the store of a running authority, which writes the lost step
// from memory.
func TestRolledBackBeneath(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.NextText(a.inForce().approved, tighter...), "ana", "ben"))))
	exec(t, w.dsn, `DELETE FROM history WHERE step = 2`)
	if _, err := w.scoring().enrol(direct{a}); err != nil {
		t.Error(err)
	}
	if got, want := testworld.Must(a.store.HistoryHead(t.Context())), a.inForce().approved.PolicyHead(); got != want {
		t.Errorf("got head %v in the store, want %v", got, want)
	}
}

// TestAdoptedMeanwhile: the authority's tick, or another authority of the store, adopts a
// proposal between two steps of its proposer's request. The request still succeeds.
func TestAdoptedMeanwhile(t *testing.T) {
	w := newWorld(t)
	a, other := w.open(), w.open()
	next := w.SignPolicy(w.NextText(a.inForce().approved), "ana", "ben")
	for _, by := range []*Authority{a, a, other} {
		if err := by.history.Adopt(t.Context(), api.HistoryEntry{Policy: next.Policy, Signatures: next.Signatures}); err != nil {
			t.Error(err)
		}
		if got, want := by.inForce().document().Digest(), wire.Sum(next.Policy); got != want {
			t.Errorf("got policy %v in force, want %v", got, want)
		}
	}
}

// TestFollowed: one authority adopts a policy, then another of the same store issues. It detects
// the change in the transaction and decides again.
func TestFollowed(t *testing.T) {
	w := newWorld(t)
	a, b := w.open(), w.open()
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.NextText(a.inForce().approved, tighter...), "ana", "ben"))))
	report := testworld.Must(w.scoring().enrol(direct{b}))
	if want := a.inForce().approved.PolicyHead(); report.Head != want {
		t.Errorf("got a report under head %v, want %v", report.Head, want)
	}
}

// TestUpgrade moves the authority to a new build by policy. The root stays the same.
func TestUpgrade(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	rebuilt := wire.Sum([]byte("rebuilt")).String()
	reference := "{ platform = \"soft\", program = \"" + wire.Sum([]byte("authority")).String() + "\" }"
	both := w.NextText(a.inForce().approved, reference, reference+", { platform = \"soft\", program = \""+rebuilt+"\" }")

	_, err := Open(t.Context(), w.config("rebuilt"))
	testworld.Refused(t, err, wire.NotMeasured)
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(both, "ana", "ben"))))
	w.wait(a, time.Hour)
	b, err := Open(t.Context(), w.config("rebuilt"))
	if err != nil {
		t.Fatal(err)
	}
	if b.RootDigest() != a.RootDigest() {
		t.Error("the root changed with the build")
	}
	// Remove the old reference value: the old build issues nothing more and cannot start.
	single := w.NextText(b.inForce().approved, reference+", ", "")
	testworld.Must(b.history.Propose(t.Context(), proposal(w.SignPolicy(single, "ana", "ben"))))
	if err := a.history.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, err = w.scoring().enrol(direct{a})
	testworld.Refused(t, err, wire.Unavailable)
	_, err = Open(t.Context(), w.config("authority"))
	testworld.Refused(t, err, wire.NotMeasured)
	if _, err := w.scoring().enrol(direct{b}); err != nil {
		t.Error(err)
	}
}

// TestPushMoves: a push brings a second store of the same root to the newest policy.
func TestPushMoves(t *testing.T) {
	w := newWorld(t)
	w.open()
	copied := copyStore(t, w.dsn)
	a := w.open()
	testworld.Must(a.history.Propose(t.Context(), proposal(w.SignPolicy(w.NextText(a.inForce().approved, tighter...), "ana", "ben"))))
	w.dsn = copied
	b := w.open()
	if got := testworld.Must(b.history.Push(t.Context(), a.history.Current().StepsFrom(1))); got.Head != a.inForce().approved.PolicyHead() {
		t.Errorf("got head %v, want %v", got.Head, a.inForce().approved.PolicyHead())
	}
}
