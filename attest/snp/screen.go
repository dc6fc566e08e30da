package snp

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
)

// Screen implements [attest.Screener]. The signature of a report needs the chip's
// certificate, so this applies the rules to what the report claims: generation,
// firmware, chip, launch key and guest policy. Any caller can make up such a report;
// where the rules list chips, only for those.
func (*reportAppraiser) Screen(raw []byte, _ attest.Endorsements, rules attest.Rules, _ time.Time) (attest.Claims, error) {
	r, err := parseReport(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	c := unverifiedChain(r)
	if err := permit(r, c.current(), rules.SNP); err != nil {
		return attest.Claims{}, err
	}
	return claims(r, c), nil
}

// Screen is that of the report, and checks that it binds the key that quoted the
// PCRs.
func (a *azureAppraiser) Screen(raw []byte, _ attest.Endorsements, rules attest.Rules, _ time.Time) (attest.Claims, error) {
	e, err := parseAzure(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	r, err := parseReport(e.report)
	if err != nil {
		return attest.Claims{}, err
	}
	quote, err := e.quoted(r)
	if err != nil {
		return attest.Claims{}, err
	}
	c := unverifiedChain(r)
	if err := permit(r, c.current(), rules.SNP); err != nil {
		return attest.Claims{}, err
	}
	return e.claims(r, c, quote), nil
}

// current is a chain whose generation is Milan where the report does not state one:
// reports of version 2 do not, and Milan was the only generation when it was current.
func (c chain) current() *chain {
	if c.product == "" {
		c.product = "Milan"
	}
	return &c
}
