package attesttest

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
)

// Voucher is an appraiser that accepts evidence without verification, for tests of code
// after appraisal, which need a result but no vendor. It is the only way for tests outside
// of package attest to provide an appraiser.
type Voucher struct {
	Of   attest.Platform
	Says func(raw []byte) attest.Claims // claims of the evidence, including report data
}

// Vouch returns a Voucher of the development platform that always states the same claims.
func Vouch(claims attest.Claims) Voucher {
	return Voucher{attest.Soft, func([]byte) attest.Claims { return claims }}
}

// Platform returns Of.
func (v Voucher) Platform() attest.Platform { return v.Of }

// Appraise returns the claims that Says returns.
func (v Voucher) Appraise(raw []byte, _ attest.Endorsements, _ attest.Rules, _ time.Time) (attest.Claims, error) {
	return v.Says(raw), nil
}

// Genuine implements [attest.Appraiser].
func (v Voucher) Genuine() closed.Appraiser { return closed.VouchFor(v) }
