package attesttest

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
)

// Voucher is an appraiser that believes evidence: for tests of what follows
// appraisal, which need a result and no vendor. It is the one way for tests outside
// of package attest to have an appraiser of their own.
type Voucher struct {
	Of   attest.Platform
	Says func(raw []byte) attest.Claims // claims of the evidence, report data included
}

// Vouch is a Voucher of the development platform that has one answer.
func Vouch(claims attest.Claims) Voucher {
	return Voucher{attest.Soft, func([]byte) attest.Claims { return claims }}
}

// Platform is the one that the voucher is of.
func (v Voucher) Platform() attest.Platform { return v.Of }

// Appraise returns what the voucher states.
func (v Voucher) Appraise(raw []byte, _ attest.Endorsements, _ attest.Rules, _ time.Time) (attest.Claims, error) {
	return v.Says(raw), nil
}

// Genuine implements [attest.Appraiser].
func (v Voucher) Genuine() closed.Appraiser { return closed.VouchFor(v) }
