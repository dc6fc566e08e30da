package policyfile

import "github.com/cohort-tee/cohort/attest"

// ChipRefused returns the key of the platform's rules that refuses a chip: "cut_chips",
// "hidden_chips" or "chips". It returns "" if the rules accept the chip. The chip is
// spelled as in appraisal results.
func ChipRefused(p attest.Platform, rules attest.Rules, chip string) string {
	known, ok := known.lookup(p)
	if !ok || known.ChipRefused == nil {
		return "" // no rule of it names a chip
	}
	return known.ChipRefused(rules, chip)
}
