package policyfile

import (
	"maps"
	"reflect"
	"slices"

	"github.com/cohort-tee/cohort/attest"
)

// Tightened returns the platforms that accept less after a step, or are gone, and of
// those the ones that accept less of what a leaf does not record. On a TPM every
// program that ran since the machine booted is looked at, so code that goes is a
// narrower rule for all.
func Tightened(old, next *Document) (narrowed, raised map[attest.Platform]bool) {
	narrowed, raised = map[attest.Platform]bool{}, map[attest.Platform]bool{}
	before, after := under(old.tables(), "platform"), under(next.tables(), "platform")
	for _, name := range slices.Sorted(maps.Keys(before)) {
		p := attest.Platform(name)
		if _, kept := next.Platforms[p]; !kept {
			narrowed[p], raised[p] = true, true
			continue
		}
		if reflect.DeepEqual(before[name], after[name]) {
			continue
		}
		one := func(tree map[string]any) map[string]any { return map[string]any{name: tree[name]} }
		for _, c := range diffTables("platform", "platform", one(before), one(after)) {
			if c.Loosens {
				continue
			}
			narrowed[p] = true
			raised[p] = raised[p] || p.IsDevice() || !known.keys[c.Path].Recorded
		}
	}
	for _, p := range known.all {
		if p.Launches != nil && launchesLess(p, old, next) {
			narrowed[p.Platform], raised[p.Platform] = true, true
		}
	}
	maps.DeleteFunc(raised, func(_ attest.Platform, is bool) bool { return !is })
	return narrowed, raised
}

// launchesLess reports whether next names no longer some code that a machine of a platform
// may have launched.
func launchesLess(p attest.PolicyRules, old, next *Document) bool {
	before, after := old.Platforms[p.Platform], next.Platforms[p.Platform]
	now := map[string]bool{}
	for _, r := range *p.Launches(&after) {
		now[string(r.Bytes())] = true
	}
	return slices.ContainsFunc(*p.Launches(&before), func(r attest.ReferenceValue) bool { return !now[string(r.Bytes())] })
}
