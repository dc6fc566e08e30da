package nvidia

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// Screen implements [attest.Screener]. The certificates come with the report, so
// that only the revocation lists are left out.
func (a reportAppraiser) Screen(raw []byte, brought attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	rules.CRL = attest.CRLIfPresent
	return a.Appraise(raw, attest.Endorsements{roleChain: brought[roleChain]}, rules, at)
}
