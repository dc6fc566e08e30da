package policy

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// Step is one step of the history: a policy file and the armored SSH signatures of owners
// over it, or a [Statement] and the one signature of its party.
type Step struct {
	Policy     []byte // or a statement
	Signatures []string
}

// Approved is policy in force: a document that a quorum of the owners of the
// document before it signed, back to the pinned genesis. Only [Genesis],
// [Approved.Next] and [Replay] make one; the zero Approved refuses everything.
// It is immutable and cheap to copy.
type Approved struct {
	doc     *policyfile.Document
	genesis attest.Digest
	draft   attest.Digest // of the genesis
	founded time.Time
	steps   []Step
	heads   []attest.Digest        // heads[i] is the head after step i
	digests []attest.Digest        // of the policies, genesis first
	groups  map[string]*GroupState // the groups of doc, by name
	live    map[attest.Digest]program
	cuts    cuts
	records groupRecords
	states  []stepState // the state after each step
}

// Genesis approves the first policy: its digest is the pin, and a quorum of its
// own owners signed it. It refuses with "genesis", "quorum" or the reason of
// [policyfile.Parse].
func Genesis(pin attest.Digest, step Step) (Approved, error) {
	if got := wire.Sum(step.Policy); got != pin {
		return Approved{}, wire.Refuse(wire.WrongGenesis, "genesis: digest of the first policy", got, pin)
	}
	doc, err := policyfile.Parse(step.Policy)
	if err != nil {
		return Approved{}, fmt.Errorf("reading the genesis policy: %w", err)
	}
	if doc.Sequence != 1 {
		return Approved{}, wire.Refuse(wire.WrongSequence, "genesis: sequence", doc.Sequence, 1)
	}
	signed, err := signers(doc.Owners, step)
	if err != nil {
		return Approved{}, err
	}
	if err := doc.Owners.CheckQuorum(signed); err != nil {
		return Approved{}, err
	}
	line, err := policyfile.SplitRoot(step.Policy)
	if err != nil {
		return Approved{}, fmt.Errorf("reading the genesis policy: %w", err)
	}
	a := Approved{genesis: pin, draft: line.DraftDigest(), founded: doc.Created}
	groups, err := a.nextGroups(doc)
	if err != nil {
		return Approved{}, err
	}
	return a.extended(doc, step, groups), nil
}

// Next approves the step that follows. A policy has the same trust domain, the
// next sequence, the previous digest, and a quorum of the owners of a. The
// authority checks its delay. A party's statement is about a group of a, and newer than its last.
func (a Approved) Next(step Step) (Approved, error) {
	// Clipped, so that two successors of one policy never share memory.
	a.steps, a.heads, a.digests, a.states = slices.Clip(a.steps), slices.Clip(a.heads), slices.Clip(a.digests), slices.Clip(a.states)
	a.cuts.kept = true
	return a.nextInPlace(step)
}

// nextInPlace is Next in the memory of a, which has no other successor.
func (a Approved) nextInPlace(step Step) (Approved, error) {
	if !a.Genuine() {
		return Approved{}, errNothing
	}
	if IsStatement(step.Policy) {
		return a.addStatement(step)
	}
	signed, err := signers(a.doc.Owners, step)
	if err != nil {
		return Approved{}, err
	}
	if err := a.doc.Owners.CheckQuorum(signed); err != nil {
		return Approved{}, err
	}
	doc, err := a.successor(step.Policy)
	if err != nil {
		return Approved{}, err
	}
	if err := a.checkStepRoom(1); err != nil {
		return Approved{}, err
	}
	groups, err := a.nextGroups(doc)
	if err != nil {
		return Approved{}, err
	}
	a.records = a.records.assign(len(a.steps), slices.Collect(maps.Values(groups))...)
	return a.extended(doc, step, groups), nil
}

// Replay approves a whole history from its genesis on.
func Replay(pin attest.Digest, steps []Step) (Approved, error) {
	if len(steps) == 0 || len(steps) > wire.MaxHistory {
		return Approved{}, wire.Refuse(wire.TooLarge, "history: number of steps", len(steps), fmt.Sprint("1 to ", wire.MaxHistory))
	}
	a, err := Genesis(pin, steps[0])
	if err != nil {
		return Approved{}, err
	}
	return a.NextAll(steps[1:])
}

// NextAll approves all steps that follow, as [Approved.Next] does one, and copies
// the history once.
func (a Approved) NextAll(steps []Step) (Approved, error) {
	if len(steps) == 0 {
		return a, nil
	}
	next, err := a.Next(steps[0])
	for i := 1; i < len(steps) && err == nil; i++ {
		next, err = next.nextInPlace(steps[i])
	}
	if err != nil {
		return Approved{}, fmt.Errorf("replaying step %d: %w", len(next.steps)+1, err)
	}
	return next, nil
}

// errNothing refuses the zero Approved.
var errNothing = wire.Refuse(wire.BadPolicy, "approved policy", "the zero policy", "a history from the pinned genesis")

// extended returns a with one more step, which was verified, and the state that follows
// from it.
func (a Approved) extended(doc *policyfile.Document, step Step, groups map[string]*GroupState) Approved {
	if a.doc == doc {
		a.cuts = a.cuts.withStep(cutByStatement(a.groups, groups), len(a.heads))
	} else {
		live := programsOf(doc, a.genesis)
		if a.doc != nil {
			a.cuts = a.cuts.withStep(a.cutBy(doc, live, groups), len(a.heads))
		}
		a.live, a.digests = live, append(a.digests, wire.Sum(step.Policy))
	}
	head := NextHead(a.PolicyHead(), step.Policy)
	a.doc, a.groups = doc, groups
	a.steps = append(a.steps, Step{bytes.Clone(step.Policy), slices.Clone(step.Signatures)})
	a.heads = append(a.heads, head)
	a.states = append(a.states, stepState{groups, a.records})
	return a
}

// successor parses a policy and checks that it may follow a. It verifies no signature.
func (a Approved) successor(raw []byte) (*policyfile.Document, error) {
	next, err := policyfile.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("reading the next policy: %w", err)
	}
	now := a.doc
	switch {
	case next.TrustDomain != now.TrustDomain:
		return nil, wire.Refuse(wire.WrongDomain, "next policy: trust domain", next.TrustDomain, now.TrustDomain)
	case next.Sequence != now.Sequence+1:
		return nil, wire.Refuse(wire.WrongSequence, "next policy: sequence", next.Sequence, now.Sequence+1)
	case next.Previous != now.Digest():
		return nil, wire.Refuse(wire.WrongSequence, "next policy: previous", next.Previous, now.Digest())
	case next.Created.Before(now.Created):
		return nil, wire.Refuse(wire.BadPolicy, "next policy: created", next.Created, "not before "+now.Created.String())
	case next.Development != now.Development:
		// A root that was once in a development TEE is never one of hardware.
		return nil, wire.Refuse(wire.BadPolicy, "next policy: development", next.Development, now.Development)
	}
	return next, nil
}

// under returns the history with the policy of a sequence number in force again.
// Everything else in it remains that of a.
func (a Approved) under(sequence uint64) (Approved, error) {
	if sequence < 1 || sequence > uint64(len(a.digests)) {
		return Approved{}, wire.Refuse(wire.WrongSequence, "proposal: sequence", sequence+1, fmt.Sprint("2 to ", len(a.digests)+1))
	}
	digest := a.digests[sequence-1]
	i := slices.IndexFunc(a.steps, func(s Step) bool { return wire.Sum(s.Policy) == digest })
	var err error
	a.doc, err = policyfile.Parse(a.steps[i].Policy)
	return a, err
}

// signers returns the owners who signed a step, each once, in the order of the signatures.
// It refuses signatures of other keys.
func signers(owners policyfile.Owners, step Step) ([]string, error) {
	if len(step.Policy) > wire.MaxPolicy {
		return nil, wire.Refuse(wire.TooLarge, "policy: size in bytes", len(step.Policy), wire.MaxPolicy)
	}
	if len(step.Signatures) > len(owners.Keys) {
		return nil, wire.Refuse(wire.TooLarge, "policy: number of signatures", len(step.Signatures), fmt.Sprint("one for each of ", len(owners.Keys), " owners"))
	}
	var names []string
	for _, sig := range step.Signatures {
		name, err := owners.Signer(sig, sshsig.ForPolicy, step.Policy)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// Genuine reports whether a was approved.
func (a Approved) Genuine() bool { return a.doc != nil }

// Document returns the policy in force, or nil for the zero Approved.
func (a Approved) Document() *policyfile.Document { return a.doc }

// Genesis returns the pinned digest of the first policy.
func (a Approved) Genesis() attest.Digest { return a.genesis }

// Draft returns the digest of the draft that became the genesis: policydraft.Draft.Digest.
func (a Approved) Draft() attest.Digest { return a.draft }

// Founded returns the creation time in the genesis policy. Root certificates are valid
// from then on.
func (a Approved) Founded() time.Time { return a.founded }

// Steps returns the approved steps, oldest first. The caller does not change them.
func (a Approved) Steps() []Step { return slices.Clip(a.steps) }

// PolicyHead returns the head of the hash chain: head(0) = H("cohort history v1", zero,
// genesis), head(i) = H("cohort history v1", head(i-1), digest of policy i). For the zero
// Approved it is the zero digest.
func (a Approved) PolicyHead() attest.Digest {
	if len(a.heads) == 0 {
		return attest.Digest{}
	}
	return a.heads[len(a.heads)-1]
}

// Heads returns the heads after each step, oldest first. The caller does not change them.
func (a Approved) Heads() []attest.Digest { return slices.Clip(a.heads) }

// Knows reports whether head is the zero digest or the head after any step so
// far. An authority that does not know a head is behind.
func (a Approved) Knows(head attest.Digest) bool {
	return a.Genuine() && (head.IsZero() || slices.Contains(a.heads, head))
}

// Rules returns the rules of each platform, for appraisal. The zero Approved has none, so
// every platform is refused.
func (a Approved) Rules() map[attest.Platform]attest.Rules {
	if !a.Genuine() {
		return nil
	}
	return maps.Clone(a.doc.Platforms)
}

// NextHead returns the head of the hash chain after one more step.
func NextHead(head attest.Digest, step []byte) attest.Digest { return wire.NextHead(head, step) }

// stepState is the state after a step of a history, without the policy in force, which is
// parsed again on demand: all parsed policies together take many times the memory of their
// files.
type stepState struct {
	groups  map[string]*GroupState
	records groupRecords
}

// AtHead returns the state after the step of a head of this history, and false for any
// other head.
func (a Approved) AtHead(head attest.Digest) (Approved, bool) {
	i, known := a.Index(head)
	if !known || i < 0 {
		return Approved{}, false
	}
	return a.after(i, a.documentAt(i)), true
}

// Since returns the states after each step that follows a head, oldest first, and false
// for a head that this history does not have.
func (a Approved) Since(head attest.Digest) (later []Approved, known bool) {
	index, known := a.Index(head)
	if !known || index < 0 {
		return nil, false
	}
	doc := a.documentAt(index)
	for i := index + 1; i < len(a.steps); i++ {
		if !IsStatement(a.steps[i].Policy) {
			doc = a.documentAt(i)
		}
		later = append(later, a.after(i, doc))
	}
	return later, true
}

// after returns a as it was after the step of an index, under the document of then.
func (a Approved) after(index int, doc *policyfile.Document) Approved {
	if doc != a.doc {
		a.live = programsOf(doc, a.genesis)
	}
	a.doc, a.groups, a.records = doc, a.states[index].groups, a.states[index].records
	a.steps, a.heads, a.states = a.steps[:index+1], a.heads[:index+1], a.states[:index+1]
	a.digests = a.digests[:doc.Sequence]
	return a
}

// documentAt returns the policy in force after the step of an index.
func (a Approved) documentAt(index int) *policyfile.Document {
	isPolicy := func(s Step) bool { return !IsStatement(s.Policy) }
	if !slices.ContainsFunc(a.steps[index+1:], isPolicy) {
		return a.doc
	}
	for !isPolicy(a.steps[index]) {
		index--
	}
	doc, err := policyfile.Parse(a.steps[index].Policy)
	if err != nil {
		panic("policy: reading a policy that was approved: " + err.Error())
	}
	return doc
}
