package policy

import (
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

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
