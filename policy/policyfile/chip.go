package policyfile

import "github.com/cohort-tee/cohort/attest"

// ChipRefused is the key of a platform's rules that refuses a chip, as results
// of appraisal name it: "cut_chips", "hidden_chips" or "chips"; empty where the
// rules accept it.
func ChipRefused(p attest.Platform, rules attest.Rules, chip string) string {
	known, ok := known.lookup(p)
	if !ok || known.ChipRefused == nil {
		return "" // no rule of it names a chip
	}
	return known.ChipRefused(rules, chip)
}
