package policyfile

import (
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// GroupsEnded names the groups of next that its [authority] ends: no authority that it
// names may hold their roots, by what the groups themselves say; or next names no
// program that old named, and on one machine of SNP, SGX, TDX or Nitro no other program opens
// their roots. An old document of nil is none, and leaves the second out.
func GroupsEnded(old, next *Document) []policytoml.Warning {
	var all []policytoml.Warning
	for _, name := range next.GroupNames() {
		path, c := policytoml.JoinPath("group", name)+".authority", next.Groups[name].Authority
		switch {
		case !anyOverlap(next.Authority.References, c.References):
			all = append(all, policytoml.Warning{Path: path, Text: "the group ends: no program of [authority] stands in its references, so none can hold its root"})
		case !next.Authority.Machines.anyCommon(c.Machines):
			all = append(all, policytoml.Warning{Path: path, Text: "the group ends: no machine of [authority] stands among its machines, so none can hold its root"})
		case old != nil && old.Groups[name] != nil && !anyOverlap(old.Authority.References, next.Authority.References):
			all = append(all, policytoml.Warning{Path: path, Text: "the group ends on one SNP, SGX, TDX or Nitro machine: no program of [authority] stands in the former policy, no other opens the root, and no backup has it; the parties approve a group again under the root of the new program"})
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

// anyOverlap reports whether one machine stands in both.
func (m Machines) anyCommon(other Machines) bool {
	return m.Any || other.Any || slices.ContainsFunc(m.Chips, func(chip string) bool { return slices.Contains(other.Chips, chip) })
}
