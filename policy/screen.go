package policy

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// CouldAdmit refuses, as Admit would, a program that is not a release of a task. It is for
// evidence that is not appraised yet, before the caller does any expensive work on it; it
// admits no unit.
func (a Approved) CouldAdmit(task string, unverified attest.Measurement) error {
	if !a.Genuine() {
		return errNothing
	}
	t := a.doc.Tasks[task]
	if t == nil {
		return wire.Refuse(wire.NotFound, "admission: task", task, "a task of the policy")
	}
	var all []attest.ReferenceValue
	for _, name := range t.ReleaseNames() {
		all = append(all, t.Releases[name].References...)
	}
	return policyfile.Match(all, unverified)
}

// CouldAdmitMember is CouldAdmit for a role of a group. It does not check the approvals of
// the parties.
func (a Approved) CouldAdmitMember(group, role string, unverified attest.Measurement) error {
	if !a.Genuine() {
		return errNothing
	}
	p := a.groups[group]
	if p == nil || p.Group.Roles[role] == nil {
		return wire.Refuse(wire.NotFound, "admission: role of group "+group, role, "one of the policy")
	}
	var all []attest.ReferenceValue
	for _, m := range p.Group.Roles[role].Members {
		all = append(all, a.doc.Tasks[m.Task].Releases[m.Release].References...)
	}
	return policyfile.Match(all, unverified)
}
