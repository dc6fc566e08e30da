package policy

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// tighter and looser are edits for a next policy.
var (
	tighter = []string{`lifetime = "30m"`, `lifetime = "20m"`}
	looser  = []string{`lifetime = "30m"`, `lifetime = "40m"`}
)

func (h *house) propose(t testing.TB, a Approved, edits []string, names ...string) Proposal {
	t.Helper()
	p, err := Propose(a, h.step(t, h.next(t, a, edits...), names...), policytest.Start)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// with returns the proposal with an owner's signature.
func (h *house) with(t testing.TB, p Proposal, a Approved, name string, at time.Time) Proposal {
	t.Helper()
	p, err := p.AddSignature(a, h.sign(t, sshsig.ForPolicy, p.Record().Policy, name)[0], at)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func wantState(t testing.TB, p Proposal, a Approved, at time.Time, want State) {
	t.Helper()
	if got := p.State(a, at); got != want {
		t.Errorf("%v: got state %q, want %q", at.Sub(policytest.Start), got, want)
	}
}

func TestProposalOfTighteningActsAtOnce(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	p := h.propose(t, a, tighter, "eva")
	wantState(t, p, a, policytest.Start, Pending)
	if p.Proposer() != "eva" || !slices.Equal(p.Missing(), []string{"ana", "ben"}) || p.Loosens() || p.Quorum() != 2 || !p.Quorate().IsZero() {
		t.Errorf("got proposer %s, missing %q, loosens %v", p.Proposer(), p.Missing(), p.Loosens())
	}
	_, err := a.Next(p.NextStep())
	policytest.Refused(t, err, wire.NoQuorum)

	at := policytest.Start.Add(time.Minute)
	p = h.with(t, p, a, "ana", at)
	wantState(t, p, a, at, Ready)
	if !slices.Equal(p.Signed(), []string{"eva", "ana"}) || !p.Quorate().Equal(at) || p.Delay() != 0 {
		t.Errorf("got signed %q, quorum at %v, delay %v", p.Signed(), p.Quorate(), p.Delay())
	}
	b, err := a.Next(p.NextStep())
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, p, b, at, Adopted)
}

func TestProposalOfLooseningWaits(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	p := h.propose(t, a, looser, "ana")
	quorum := policytest.Start.Add(10 * time.Minute)
	p = h.with(t, p, a, "ben", quorum)
	wantState(t, p, a, quorum, Waiting)
	wantState(t, p, a, policytest.Start.Add(1000*time.Hour), Waiting) // the wall clock, which the host sets, does not count
	p = p.Counted(time.Hour-1, "one")
	wantState(t, p, a, quorum, Waiting)
	wantState(t, p.Counted(1, "another"), a, quorum, Ready)
	if got := p.Counted(time.Hour, "one").Waited(); got != p.Delay() || got != time.Hour {
		t.Errorf("got %v waited of %v, want an hour of an hour", got, p.Delay())
	}
	if got := p.Counted(-time.Second, "one").Waited(); got != p.Waited() {
		t.Errorf("got %v waited after a time below zero, want %v", got, p.Waited())
	}

	// A later signature of an owner does not change the time that has passed.
	p = h.with(t, p, a, "eva", quorum.Add(30*time.Minute))
	if p.Waited() != time.Hour-1 || !p.Quorate().Equal(quorum) {
		t.Errorf("got %v waited since %v, want %v since %v", p.Waited(), p.Quorate(), time.Hour-1, quorum)
	}
}

// TestNothingCountsBeforeTheQuorum: the delay of a proposal starts only when it has its quorum.
func TestNothingCountsBeforeTheQuorum(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	p := h.propose(t, a, looser, "ana").Counted(2*time.Hour, "one")
	p = h.with(t, p, a, "ben", policytest.Start)
	wantState(t, p, a, policytest.Start, Waiting)
	if p.Waited() != 0 {
		t.Errorf("got %v waited at the quorum, want nothing", p.Waited())
	}
}

// TestRenew proposes the file of a finished proposal again. With the old signatures it is
// refused; with a quorum of other owners it is renewed, unless it was adopted.
func TestRenew(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	raw := h.next(t, a, looser...)
	cancelled := func(names ...string) Proposal {
		p, err := Propose(a, Step{raw, h.sign(t, sshsig.ForPolicy, raw, names...)}, policytest.Start)
		if err != nil {
			t.Fatal(err)
		}
		if p, err = p.Cancel(a, CancelStatement(a, p.Digest()), h.sign(t, sshsig.ForCancel, CancelStatement(a, p.Digest()), names[0])[0], policytest.Start); err != nil {
			t.Fatal(err)
		}
		return p
	}
	byOne, byTwo := cancelled("eva"), cancelled("ana", "ben")
	for _, row := range []struct {
		name    string
		over    Proposal
		signers []string
		want    attest.Reason // empty: renewed
	}{
		{"a quorum without the owner who cancelled", byOne, []string{"ana", "ben"}, ""},
		{"that owner among a quorum of others", byOne, []string{"eva", "ben", "ana"}, ""},
		{"that owner and one more", byOne, []string{"eva", "ben"}, wire.ProposalOver},
		{"one other", byOne, []string{"ben"}, wire.ProposalOver},
		{"the same signatures again", byTwo, []string{"ana", "ben"}, wire.ProposalOver},
		{"one of them and one more", byTwo, []string{"ben", "eva"}, wire.ProposalOver},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := row.over.Renew(a, h.sign(t, sshsig.ForPolicy, raw, row.signers...), policytest.Start)
			if row.want != "" {
				policytest.Refused(t, err, row.want)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			wantState(t, p, a, policytest.Start, Waiting)
			if slices.Contains(p.Signed(), "eva") {
				t.Error("the signature of the owner who cancelled counts again")
			}
		})
	}
	b, err := a.Next(Step{raw, h.sign(t, sshsig.ForPolicy, raw, "ana", "ben")})
	if err != nil {
		t.Fatal(err)
	}
	_, err = byOne.Renew(b, h.sign(t, sshsig.ForPolicy, raw, "ana", "ben"), policytest.Start)
	policytest.Refused(t, err, wire.ProposalOver)
}

func TestProposalWithQuorumFromTheBeginning(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	wantState(t, h.propose(t, a, tighter, "ana", "eva"), a, policytest.Start, Ready)
	wantState(t, h.propose(t, a, looser, "ana", "eva"), a, policytest.Start, Waiting)
}

func TestProposalExpires(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	p := h.propose(t, a, tighter, "ana")
	end := policytest.Start.Add(168 * time.Hour)
	if !p.Expires().Equal(end) {
		t.Errorf("got expiry %v, want %v", p.Expires(), end)
	}
	wantState(t, p, a, end.Add(-1), Pending)
	wantState(t, p, a, end, Expired)
	_, err := p.AddSignature(a, h.sign(t, sshsig.ForPolicy, p.Record().Policy, "ben")[0], end)
	policytest.Refused(t, err, wire.ProposalOver)
	wantState(t, Proposal{}, a, policytest.Start, Expired)
	wantState(t, Proposal{}, Approved{}, policytest.Start, Expired)
}

func TestProposalOvertaken(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	slow, quick := h.propose(t, a, looser, "ana"), h.propose(t, a, tighter, "ben", "eva")
	b, err := a.Next(quick.NextStep())
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, slow, b, policytest.Start, Expired)
	_, err = slow.AddSignature(b, h.sign(t, sshsig.ForPolicy, slow.Record().Policy, "ben")[0], policytest.Start)
	policytest.Refused(t, err, wire.ProposalOver)
}

func TestProposeRefusals(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	raw := h.next(t, a, looser...)
	stranger := newHouse()
	stranger.Owners["ana"] = policytest.Fixed("mallory")
	future := h.next(t, a, "2026-11-22T09:00:00Z", "2026-11-22T09:05:01Z")
	for _, row := range []struct {
		name string
		step Step
		want attest.Reason
	}{
		{"no signature", Step{Policy: raw}, wire.NoQuorum},
		{"one owner twice", h.step(t, raw, "ana", "ana"), wire.NoQuorum},
		{"a stranger", stranger.step(t, raw, "ana"), wire.NotOwner},
		{"signature over another version", Step{raw, h.sign(t, sshsig.ForPolicy, h.next(t, a, tighter...), "ana")}, wire.BadSignature},
		{"not the next", h.step(t, h.Text(t), "ana"), wire.WrongSequence},
		{"created in the future", h.step(t, future, "ana"), wire.ClockSkew},
		{"too large", Step{make([]byte, wire.MaxPolicy+1), []string{"x"}}, wire.TooLarge},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := Propose(a, row.step, policytest.Start)
			policytest.Refused(t, err, row.want)
		})
	}
	p := h.propose(t, a, looser, "ana")
	_, err := p.AddSignature(a, h.sign(t, sshsig.ForPolicy, raw, "ana")[0], policytest.Start)
	policytest.Refused(t, err, wire.NoQuorum)
	_, err = p.AddSignature(a, stranger.sign(t, sshsig.ForPolicy, raw, "ana")[0], policytest.Start)
	policytest.Refused(t, err, wire.NotOwner)
	_, err = p.AddSignature(a, h.sign(t, sshsig.ForCancel, raw, "ben")[0], policytest.Start)
	policytest.Refused(t, err, wire.BadSignature)
}

// TestProposalsShareNothing: two signatures added to one proposal give two proposals without
// shared memory.
func TestProposalsShareNothing(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	p := h.propose(t, a, looser, "ana")
	x, y := h.with(t, p, a, "ben", policytest.Start), h.with(t, p, a, "eva", policytest.Start)
	if !slices.Equal(x.Signed(), []string{"ana", "ben"}) || !slices.Equal(y.Signed(), []string{"ana", "eva"}) || len(p.Signed()) != 1 {
		t.Errorf("got %q, %q and %q", x.Signed(), y.Signed(), p.Signed())
	}
}

func TestCancel(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	p := h.propose(t, a, looser, "ana", "ben")
	statement := CancelStatement(a, p.Digest())
	want := "schema = \"cohort/cancel/v1\"\ntrust_domain = \"clinic.example\"\ngenesis = \"" + a.Genesis().String() + "\"\nproposal = \"" + p.Digest().String() + "\"\n"
	if string(statement) != want || len(statement) > wire.MaxStatement {
		t.Errorf("got statement %q, want %q", statement, want)
	}
	sign := func(statement []byte, name string, ns sshsig.Namespace) string {
		return h.sign(t, ns, statement, name)[0]
	}
	other := CancelStatement(a, policytest.Digest("a"))
	for _, row := range []struct {
		name      string
		statement []byte
		signature string
		want      attest.Reason
	}{
		{"another owner", statement, sign(statement, "ben", sshsig.ForCancel), wire.NotOwner},
		{"signed as a policy", statement, sign(statement, "ana", sshsig.ForPolicy), wire.BadSignature},
		{"another proposal", other, sign(other, "ana", sshsig.ForCancel), wire.Malformed},
		{"one byte more", append(bytes.Clone(statement), '\n'), sign(append(bytes.Clone(statement), '\n'), "ana", sshsig.ForCancel), wire.Malformed},
		{"signature over another statement", statement, sign(other, "ana", sshsig.ForCancel), wire.BadSignature},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := p.Cancel(a, row.statement, row.signature, policytest.Start)
			policytest.Refused(t, err, row.want)
		})
	}

	cancelled, err := p.Cancel(a, statement, sign(statement, "ana", sshsig.ForCancel), policytest.Start)
	if err != nil {
		t.Fatal(err)
	}
	wantState(t, cancelled, a, policytest.Start.Add(2*time.Hour), Cancelled)
	_, err = cancelled.AddSignature(a, sign(p.Record().Policy, "eva", sshsig.ForPolicy), policytest.Start)
	policytest.Refused(t, err, wire.ProposalOver)
	_, err = cancelled.Cancel(a, statement, sign(statement, "ana", sshsig.ForCancel), policytest.Start)
	policytest.Refused(t, err, wire.ProposalOver)

	b, err := a.Next(p.NextStep())
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Cancel(b, statement, sign(statement, "ana", sshsig.ForCancel), policytest.Start)
	policytest.Refused(t, err, wire.ProposalOver)
}

func TestReopen(t *testing.T) {
	h := newHouse()
	a := h.found(t)
	pending := h.propose(t, a, looser, "ana")
	waiting := h.with(t, pending, a, "ben", policytest.Start.Add(time.Minute)).Counted(time.Minute, "one")
	statement := CancelStatement(a, pending.Digest())
	cancelled, err := pending.Cancel(a, statement, h.sign(t, sshsig.ForCancel, statement, "ana")[0], policytest.Start)
	if err != nil {
		t.Fatal(err)
	}
	b, err := a.Next(waiting.NextStep())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []Proposal{pending, waiting, cancelled} {
		for _, now := range []Approved{a, b} {
			again, err := Reopen(now, p.Record())
			if err != nil {
				t.Fatal(err)
			}
			if got, want := again.State(now, policytest.Start), p.State(now, policytest.Start); got != want {
				t.Errorf("got state %q after reopening, want %q", got, want)
			}
			if again.Proposer() != "ana" || again.Digest() != p.Digest() || again.Waited() != p.Waited() || !again.Loosens() {
				t.Errorf("got another proposal after reopening: %+v", again.Record())
			}
		}
	}

	edit := func(change func(*Record)) Record {
		r := waiting.Record()
		r.Signatures = slices.Clone(r.Signatures)
		change(&r)
		return r
	}
	for _, row := range []struct {
		name   string
		record Record
		want   attest.Reason
	}{
		{"no policy", Record{}, wire.BadPolicy},
		{"the genesis", edit(func(r *Record) { r.Policy = h.Text(t) }), wire.WrongSequence},
		{"a signature gone, the quorum's time left", edit(func(r *Record) { r.Signatures = r.Signatures[:1] }), wire.StoreForeign},
		{"the quorum's time gone", edit(func(r *Record) { r.Quorate = time.Time{} }), wire.StoreForeign},
		{"quorum before the proposal", edit(func(r *Record) { r.Quorate = policytest.Start.Add(-1) }), wire.StoreForeign},
		{"quorum after the end", edit(func(r *Record) { r.Quorate = waiting.Expires() }), wire.StoreForeign},
		{"less than nothing waited", edit(func(r *Record) { r.Waited = -1 }), wire.StoreForeign},
		{"waited before the quorum", edit(func(r *Record) { r.Signatures, r.Quorate = r.Signatures[:1], time.Time{} }), wire.StoreForeign},
		{"signature of another proposal", edit(func(r *Record) { r.Signatures[1] = h.sign(t, sshsig.ForPolicy, []byte("x"), "ben")[0] }), wire.BadSignature},
		{"cancelled by another owner", edit(func(r *Record) { r.Cancel = h.sign(t, sshsig.ForCancel, statement, "ben")[0] }), wire.NotOwner},
		{"another policy", edit(func(r *Record) { r.Policy = append(bytes.Clone(r.Policy), '\n') }), wire.BadSignature},
	} {
		t.Run(row.name, func(t *testing.T) {
			p, err := Reopen(a, row.record)
			policytest.Refused(t, err, row.want)
			if p.State(a, policytest.Start) != Expired {
				t.Error("got a live proposal beside the error")
			}
		})
	}
}
