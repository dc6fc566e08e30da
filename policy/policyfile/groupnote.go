package policyfile

import (
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// GroupsEnded warns of each group of next that the table [authority] of next ends: either
// no authority in the table may have the root of the group, by the group's own key
// "authority"; or the table has no program of old. In the second case no program can open
// the root on one SNP, SGX, TDX or Nitro machine. If old is nil, the second check is left
// out.
func GroupsEnded(old, next *Document) []policytoml.Warning {
	var all []policytoml.Warning
	for _, name := range next.GroupNames() {
		path, c := policytoml.JoinPath("group", name)+".authority", next.Groups[name].Authority
		switch {
		case !anyOverlap(next.Authority.References, c.References):
			all = append(all, policytoml.Warning{Path: path, Text: "the group ends: no program of [authority] is in its references, so none can have its root"})
		case !next.Authority.Machines.anyCommon(c.Machines):
			all = append(all, policytoml.Warning{Path: path, Text: "the group ends: no machine of [authority] is among its machines, so none can have its root"})
		case old != nil && old.Groups[name] != nil && !anyOverlap(old.Authority.References, next.Authority.References):
			all = append(all, policytoml.Warning{Path: path, Text: "the group ends on one SNP, SGX, TDX or Nitro machine: no program of [authority] is in the former policy, no other program can open the root, and no backup has it; the parties must approve the group again under the root of the new program"})
		}
	}
	return all
}

// anyOverlap reports whether one measurement could match a value of both lists.
func anyOverlap(a, b []attest.ReferenceValue) bool {
	return slices.ContainsFunc(a, func(x attest.ReferenceValue) bool {
		return slices.ContainsFunc(b, func(y attest.ReferenceValue) bool { return overlap(x, y) })
	})
}

// anyCommon reports whether both name a common machine.
func (m Machines) anyCommon(other Machines) bool {
	return m.Any || other.Any || slices.ContainsFunc(m.Chips, func(chip string) bool { return slices.Contains(other.Chips, chip) })
}
