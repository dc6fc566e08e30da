package policyfile

import (
	"maps"
	"reflect"
	"slices"

	"github.com/cohort-tee/cohort/attest"
)

// Tightened returns the platforms that accept less after a step or are removed, and those
// of them that accept less in a property that leaf certificates do not record. A TPM
// measures every program since the machine booted, so code that is removed narrows the
// rule for all its programs.
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

// launchesLess reports whether next no longer names some code that a machine of a platform
// may have run.
func launchesLess(p attest.PolicyRules, old, next *Document) bool {
	before, after := old.Platforms[p.Platform], next.Platforms[p.Platform]
	now := map[string]bool{}
	for _, r := range *p.Launches(&after) {
		now[string(r.Bytes())] = true
	}
	return slices.ContainsFunc(*p.Launches(&before), func(r attest.ReferenceValue) bool { return !now[string(r.Bytes())] })
}
