package dcap

import (
	"encoding/hex"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Screen implements [attest.Screener]. The PCK certificate comes with the quote, so
// that all of its signatures are checked, up to a root of the rules; the TCB status,
// the quoting enclave and revocation are not.
func (a *quoteAppraiser) Screen(raw []byte, _ attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	q, err := parseQuote(raw, a.of)
	if err != nil {
		return attest.Claims{}, err
	}
	p, _, err := bundle{of: a.of, chain: q.chain}.certificates()
	if err != nil {
		return attest.Claims{}, err
	}
	if !slices.Contains(rules.Roots, p.root) {
		return attest.Claims{}, wire.Refuse(wire.UnknownRoot, "dcap: root of the PCK certificate", p.root, "a root that policy names")
	}
	if err := intel.CheckValidity(at, p.times...); err != nil {
		return attest.Claims{}, err
	}
	if err := q.signedBy(p.key); err != nil {
		return attest.Claims{}, err
	}
	if err := permitChip(p, rules.DCAP); err != nil {
		return attest.Claims{}, err
	}
	if err := permitBody(q, a.of, rules.DCAP); err != nil {
		return attest.Claims{}, err
	}
	c := q.unverifiedClaims(a.of)
	c.Chip = hex.EncodeToString(p.pck.ppid)
	return c, nil
}
