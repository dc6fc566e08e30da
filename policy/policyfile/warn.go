package policyfile

import (
	"maps"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// Warnings returns the cut-offs and floors of a document that have no effect, with the
// reason, in the order of the platforms; then the tasks of which no unit can start.
func (d *Document) Warnings() []policytoml.Warning {
	var all []policytoml.Warning
	for _, p := range slices.Sorted(maps.Keys(d.Platforms)) {
		path, rules := policytoml.JoinPath("platform", string(p)), d.Platforms[p]
		warn := func(key, text string) { all = append(all, policytoml.Warning{Path: path + "." + key, Text: text}) }
		if rules.Debug {
			warn("debug", "the host can read and change such a TEE: no measurement, cut-off or floor restrains it")
		}
		if rules.CRL == attest.CRLIfPresent {
			warn("crl", "a chip or key that the vendor revoked is refused only while the revocation list is available")
		}
		if own, _ := known.lookup(p); own.Warn != nil {
			own.Warn(rules, d.references(), warn)
		}
	}
	for _, name := range d.TaskNames() {
		live := func(release string) bool { return !d.Tasks[name].Releases[release].Retired }
		if !slices.ContainsFunc(d.Tasks[name].ReleaseNames(), live) {
			all = append(all, policytoml.Warning{Path: policytoml.JoinPath("task", name) + ".release", Text: "every release is retired: no unit of the task gets a certificate"})
		}
	}
	return all
}
