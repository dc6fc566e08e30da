package policy

import (
	"maps"
	"reflect"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Concerns reports whether a step after a head concerns a unit, so that the unit renews at
// once. Such a step cuts off units of its identity, or changes the rules of its task,
// release or platform, of the tasks it calls or of the authority; in a group also the
// rules of the group and statements of its parties. Other releases of its task do not
// concern it, except cuts of those with which it shares ring keys: that continue it, or
// that it continues. Retirement of its own release does not concern it: a retired release
// is not renewed. A head that this history does not have concerns every unit.
func (a Approved) Concerns(since attest.Digest, c Facts) bool {
	index, known := a.Index(since)
	if !known || index < 0 {
		return true
	}
	if a.ringsCut(index, c) {
		return true
	}
	if c.Group != "" && a.statementSince(index, c) {
		return true
	}
	was := a.documentAt(index)
	return was != a.doc && !reflect.DeepEqual(concernOf(was, a.genesis, c), concernOf(a.doc, a.genesis, c))
}

// ringsCut reports whether a step after one of an index cut off a unit that has ring keys
// in common with the unit.
func (a Approved) ringsCut(index int, c Facts) bool {
	ids := []attest.Digest{c.Identity}
	if own, live := a.live[c.Identity]; live {
		ids = append(ids, a.continuedBy(own)...)
	}
	return slices.ContainsFunc(ids, func(id attest.Digest) bool {
		own, _ := a.Index(a.LastCut(id, ""))
		heirs, _ := a.Index(a.LastCutOfHeirs(id))
		return max(own, heirs) > index
	})
}

// statementSince reports whether a party made a statement about the unit's group after the
// step of an index: about its own roster, or about one that follows it.
func (a Approved) statementSince(index int, c Facts) bool {
	rosters := []attest.Digest{c.Identity}
	for p := a.groups[c.Group]; p != nil; p = p.Predecessor {
		rosters = append(rosters, p.id)
	}
	return slices.ContainsFunc(a.steps[index+1:], func(step Step) bool {
		s, err := ParseStatement(step.Policy)
		return err == nil && slices.Contains(rosters, s.Group)
	})
}

// concern has the parts of a document that affect one unit's certificate report.
type concern struct {
	authority policyfile.Authority
	task      policyfile.Task    // without its releases
	release   policyfile.Release // its own
	platforms map[attest.Platform]attest.Rules
	calls     map[string]*policyfile.Task
	group     *policyfile.Group
}

// concernOf returns the parts of d that affect a unit.
func concernOf(d *policyfile.Document, genesis attest.Digest, c Facts) concern {
	out := concern{authority: d.Authority, platforms: map[attest.Platform]attest.Rules{}, calls: map[string]*policyfile.Task{}, group: d.Groups[c.Group]}
	var own program
	if t := d.Tasks[c.Task]; t != nil && c.Group != "" {
		own = program{t, t.Releases[c.Release]}
	} else {
		own = programsOf(d, genesis)[c.Identity]
	}
	if own.release == nil {
		return out // it is cut off
	}
	out.task, out.release = *own.task, *own.release
	out.task.Releases, out.release.Retired = nil, false
	for _, p := range append(slices.Collect(maps.Keys(own.release.Devices)), c.Platform) {
		rules := d.Platforms[p]
		rules.TPM.Launches = nil // all code that policy names: what goes is a cut
		out.platforms[p] = rules
	}
	if c.Group == "" {
		for _, callee := range own.task.Calls {
			out.calls[callee] = d.Tasks[callee]
		}
	}
	return out
}
