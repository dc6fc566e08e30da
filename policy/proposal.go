package policy

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// State is the state of a proposal.
type State string

// The states. A proposal is over in the last three.
const (
	Pending   State = "pending"   // waits for its quorum
	Waiting   State = "waiting"   // has its quorum, loosens, waits for the delay
	Ready     State = "ready"     // may be adopted with [Approved.Next]
	Adopted   State = "adopted"   // is a step of the history
	Cancelled State = "cancelled" // by its proposer
	Expired   State = "expired"   // found no quorum in time, or another policy came first
)

// Record is a proposal in a store. Only [Reopen] verifies it.
type Record struct {
	Policy     []byte
	Signatures []string // armored, the proposer's first
	Created    time.Time
	Quorate    time.Time // when the quorum was reached, zero before
	Cancel     string    // armored signature over [CancelStatement], or empty
	// Waited is how much of the delay has passed while an authority ran, by its monotonic
	// clock. Counter names the start of the authority that adds to it.
	Waited  time.Duration `json:",omitzero"`
	Counter string        `json:",omitempty"`
}

// Proposal is a policy that waits for its quorum or its delay, with the signatures so far,
// all verified. Only [Propose] and [Reopen] make one. It is immutable.
type Proposal struct {
	record  Record
	owners  policyfile.Owners // of the policy it follows
	base    attest.Digest     // of the policy it follows
	signed  []string
	loosens bool
}

// Propose proposes the policy that follows a. At least one owner signed it; the
// first signature is the proposer's. It refuses what [Approved.Next] refuses but
// for a quorum, and with "clock" a policy created later than at.
func Propose(a Approved, step Step, at time.Time) (Proposal, error) {
	p, err := newProposal(a, Record{Policy: step.Policy, Signatures: step.Signatures, Created: at})
	if err != nil {
		return Proposal{}, err
	}
	if doc, err := policyfile.Parse(step.Policy); err != nil {
		return Proposal{}, err
	} else if _, err := a.nextGroups(doc); err != nil {
		return Proposal{}, err
	}
	return p.withQuorumTime(at), nil
}

// Reopen checks a stored proposal again, against the policy that it was made
// to follow, which a must know.
func Reopen(a Approved, r Record) (Proposal, error) {
	doc, err := policyfile.Parse(r.Policy)
	if err != nil {
		return Proposal{}, fmt.Errorf("reading the proposed policy: %w", err)
	}
	base, err := a.under(doc.Sequence - 1)
	if err != nil {
		return Proposal{}, err
	}
	p, err := newProposal(base, r)
	if err != nil {
		return Proposal{}, err
	}
	if !p.timely() {
		return Proposal{}, wire.Refuse(wire.StoreForeign, "stored proposal: time of the quorum", r.Quorate, "the time of the last signature needed")
	}
	if r.Waited < 0 || r.Waited > 0 && r.Quorate.IsZero() {
		return Proposal{}, wire.Refuse(wire.StoreForeign, "stored proposal: time waited", r.Waited, "0s without a quorum, and never less")
	}
	if r.Cancel == "" {
		return p, nil
	}
	if err := p.checkCancel(base, r.Cancel); err != nil {
		return Proposal{}, err
	}
	return p, nil
}

// newProposal verifies a proposal except for its times and its cancellation.
func newProposal(a Approved, r Record) (Proposal, error) {
	if !a.Genuine() {
		return Proposal{}, errNothing
	}
	owners := a.doc.Owners
	signed, err := signers(owners, Step{r.Policy, r.Signatures})
	if err != nil {
		return Proposal{}, err
	}
	if len(signed) == 0 || len(signed) < len(r.Signatures) {
		return Proposal{}, wire.Refuse(wire.NoQuorum, "proposal: signatures", len(r.Signatures), "at least one, of distinct owners")
	}
	doc, err := a.successor(r.Policy)
	if err != nil {
		return Proposal{}, err
	}
	if latest := r.Created.Add(wire.MaxClockSkew); doc.Created.After(latest) {
		return Proposal{}, wire.Refuse(wire.ClockSkew, "proposal: created", doc.Created, "not after "+latest.String())
	}
	r.Policy, r.Signatures = doc.Source(), slices.Clone(r.Signatures)
	return Proposal{record: r, owners: owners, base: a.doc.Digest(), signed: signed, loosens: policyfile.Loosens(a.doc, doc)}, nil
}

// timely reports whether Propose or Sign could have recorded the time of the quorum.
func (p Proposal) timely() bool {
	at := p.record.Quorate
	if p.owners.CheckQuorum(p.signed) != nil {
		return at.IsZero()
	}
	return !at.Before(p.record.Created) && at.Before(p.Expires())
}

// withQuorumTime returns p with the time of its quorum, if it reaches the quorum now.
func (p Proposal) withQuorumTime(at time.Time) Proposal {
	if p.record.Quorate.IsZero() && p.owners.CheckQuorum(p.signed) == nil {
		p.record.Quorate = at
	}
	return p
}

// AddSignature adds an owner's signature. It refuses with "proposal-over" when the
// proposal no longer waits, and a second signature of one owner with "quorum".
func (p Proposal) AddSignature(a Approved, signature string, at time.Time) (Proposal, error) {
	if err := p.checkPending(a, at); err != nil {
		return Proposal{}, err
	}
	name, err := p.owners.Signer(signature, sshsig.ForPolicy, p.record.Policy)
	if err != nil {
		return Proposal{}, err
	}
	if slices.Contains(p.signed, name) {
		return Proposal{}, wire.Refuse(wire.NoQuorum, "proposal: owner", name+", who has signed", p.Missing())
	}
	p.signed = slices.Concat(p.signed, []string{name})
	p.record.Signatures = slices.Concat(p.record.Signatures, []string{signature})
	return p.withQuorumTime(at), nil
}

// Cancel ends a proposal. The statement is [CancelStatement] byte for byte,
// signed by the proposer in the namespace "cohort-cancel".
func (p Proposal) Cancel(a Approved, statement []byte, signature string, at time.Time) (Proposal, error) {
	if err := p.checkPending(a, at); err != nil {
		return Proposal{}, err
	}
	if want := CancelStatement(a, p.Digest()); !bytes.Equal(statement, want) {
		return Proposal{}, wire.Refuse(wire.Malformed, "cancel: statement", string(statement), string(want))
	}
	if err := p.checkCancel(a, signature); err != nil {
		return Proposal{}, err
	}
	p.record.Cancel = signature
	return p, nil
}

// checkCancel verifies the proposer's signature over the cancel statement.
func (p Proposal) checkCancel(a Approved, signature string) error {
	name, err := p.owners.Signer(signature, sshsig.ForCancel, CancelStatement(a, p.Digest()))
	if err != nil {
		return err
	}
	if name != p.Proposer() {
		return wire.Refuse(wire.NotOwner, "cancel: signed by", name, p.Proposer()+", who proposed it")
	}
	return nil
}

// CancelStatement returns the text that cancels the proposal of a policy with this digest.
// a is any policy of the history.
func CancelStatement(a Approved, proposal attest.Digest) []byte {
	domain := ""
	if a.Genuine() {
		domain = a.doc.TrustDomain
	}
	return fmt.Appendf(nil, "schema = \"cohort/cancel/v1\"\ntrust_domain = %q\ngenesis = %q\nproposal = %q\n", domain, a.genesis, proposal)
}

// checkPending refuses a proposal that is over.
func (p Proposal) checkPending(a Approved, at time.Time) error {
	switch state := p.State(a, at); state {
	case Pending, Waiting, Ready:
		return nil
	default:
		return wire.Refuse(wire.ProposalOver, "proposal: state", state, "one that waits")
	}
}

// State returns the state of the proposal at a time, under the policy in force then. The
// zero Proposal is expired.
func (p Proposal) State(a Approved, at time.Time) State {
	switch {
	case slices.Contains(a.digests, p.Digest()):
		return Adopted
	case p.record.Cancel != "":
		return Cancelled
	case !a.Genuine() || a.doc.Digest() != p.base:
		return Expired
	case p.record.Quorate.IsZero() && !at.Before(p.Expires()):
		return Expired
	case p.record.Quorate.IsZero():
		return Pending
	case p.record.Waited < p.Delay():
		return Waiting
	}
	return Ready
}

// Record returns the proposal for a store. The caller does not change it.
func (p Proposal) Record() Record { return p.record }

// NextStep returns the proposal as a step of the history, for [Approved.Next].
func (p Proposal) NextStep() Step { return Step{p.record.Policy, p.record.Signatures} }

// Digest returns the SHA-256 of the proposed file, which identifies the proposal.
func (p Proposal) Digest() attest.Digest { return wire.Sum(p.record.Policy) }

// Proposer returns the name of the owner who proposed it.
func (p Proposal) Proposer() string { return p.signed[0] }

// Signed returns the owners who have signed, in the order of their signatures.
func (p Proposal) Signed() []string { return slices.Clone(p.signed) }

// Missing returns the owners who have not signed.
func (p Proposal) Missing() []string { return p.owners.Missing(p.signed) }

// Quorum returns how many owners must sign.
func (p Proposal) Quorum() int { return p.owners.Quorum }

// Loosens reports whether the proposal loosens the policy, so that it waits for the delay.
func (p Proposal) Loosens() bool { return p.loosens }

// Expires returns when a proposal without quorum is over.
func (p Proposal) Expires() time.Time { return p.record.Created.Add(p.owners.ApproveWithin) }

// Delay returns how long the proposal waits after its quorum: 0 if it only tightens.
func (p Proposal) Delay() time.Duration {
	if !p.loosens {
		return 0
	}
	return p.owners.Delay
}

// Waited returns how much of the delay has passed.
func (p Proposal) Waited() time.Duration { return min(p.record.Waited, p.Delay()) }

// Counted returns p after more of the delay has passed. The authority that counter names
// measured it. Before the quorum no time counts. The wall clock is not an argument,
// because the host sets it.
func (p Proposal) Counted(more time.Duration, counter string) Proposal {
	if !p.record.Quorate.IsZero() && more >= 0 {
		p.record.Waited = min(p.record.Waited+more, p.Delay())
		p.record.Counter = counter
	}
	return p
}

// PredecessorDigest returns the digest of the policy that the proposal follows. Once
// another policy is in force the proposal can never be adopted.
func (p Proposal) PredecessorDigest() attest.Digest { return p.base }

// Quorate returns when the quorum was reached, or the zero time.
func (p Proposal) Quorate() time.Time { return p.record.Quorate }

// Renew returns a new proposal of the file of one that is over. The former signatures do
// not count, so replayed public signatures revive nothing: it refuses with "proposal-over"
// unless a quorum of other owners signs. It never renews a policy that was adopted.
func (p Proposal) Renew(a Approved, signatures []string, at time.Time) (Proposal, error) {
	over := p.checkPending(a, at)
	if over == nil {
		return Proposal{}, wire.Refuse(wire.Internal, "renewed proposal: state", p.State(a, at), "a proposal that is over")
	}
	if p.State(a, at) == Adopted || !a.Genuine() || a.doc.Digest() != p.base {
		return Proposal{}, over
	}
	var others []string
	for _, s := range signatures {
		name, err := p.owners.Signer(s, sshsig.ForPolicy, p.record.Policy)
		if err != nil {
			return Proposal{}, err
		}
		if !slices.Contains(p.signed, name) {
			others = append(others, s)
		}
	}
	if len(others) == 0 {
		return Proposal{}, over
	}
	next, err := Propose(a, Step{p.record.Policy, others}, at)
	if err != nil {
		return Proposal{}, err
	}
	if next.record.Quorate.IsZero() {
		return Proposal{}, over
	}
	return next, nil
}
