// Package nitrorules has the keys and registers that a policy file may name of AWS Nitro enclaves.
package nitrorules

import (
	"regexp"
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// Rules are those of [attest.Nitro]. No rule of it names a chip.
var Rules = attest.PolicyRules{
	Platform: attest.Nitro,
	Registers: []attest.RegisterForm{
		{Name: "pcr0", Form: attest.FormCode384}, {Name: "pcr1", Form: attest.FormCode384}, {Name: "pcr2", Form: attest.FormCode384},
		{Name: "pcr8", Form: attest.FormExtended384},
	},
	Keys: policyKeys(),
	Chip: attest.TextForm(module.MatchString),
	Warn: func(r attest.Rules, _ []attest.PlacedReference, warn func(key, text string)) {
		if r.CRL == "" {
			warn("crl", `none: what AWS revokes is refused only while its lists are at hand; crl = "required" demands them`)
		}
	},
}

// policyKeys: a missing list is accepted where policy states nothing, and no certificate of an
// enclave is valid for longer than 3 hours.
func policyKeys() []attest.Key {
	all := append(attest.RevocationKeys(), attest.Key{
		Name: "max_age", Kind: attest.KeyDuration, Direction: attest.MaxAge, Required: true, Least: int64(time.Second), Most: int64(3 * time.Hour),
		Set: attest.SetField(func(r *attest.Rules) *time.Duration { return &r.Nitro.MaxAge }),
	})
	all[0].Implied = string(attest.CRLIfPresent)
	return all
}

var module = regexp.MustCompile(`^i-[0-9a-f]{8,32}-enc[0-9a-f]{8,32}$`)
