// Package dcap appraises Intel's quotes, of TDX trust domains and SGX enclaves,
// and asks the TEE it runs in for one.
//
// The appraiser trusts the Intel roots whose digests the rules name, and
// nothing else. Evidence is the quote alone, of version 3 (SGX), 4 or 5, with
// its PCK certificate chain. The endorsements, by role, are
//
//	tcb_info, tcb_info_chain        Intel's statement on the platform's TCB
//	qe_identity, qe_identity_chain  and on the quoting enclave, each as Intel's
//	                                PCS serves it, with its signer's chain
//	pck_crl, root_crl               the revocation lists, DER
//
// It refuses a chain that does not verify, is revoked or out of its time, a
// missing or outdated list or statement, statements on another platform, a
// signature that does not verify, a quoting enclave or TDX module that is not
// Intel's, and then whatever the rules do not accept: TCB statuses, advisories,
// chips, migration, old enclaves. The TCB status is Intel's: the worse of
// platform, TDX module and quoting enclave. docs/spec/evidence-dcap.md has every
// byte and check.
//
// Forgery is refused before policy is applied: rules check signed fields only.
//
// Files, each using those before it: pck.go, chain.go, sgxs.go, sigstruct.go, quote.go,
// report.go, tcb.go, tdxattester.go, collateral.go, memory.go, status.go, claims.go,
// permit.go, dcap.go, platform.go, screen.go, sgxattester.go.
package dcap

import (
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/internal/wire"
)

// quoteAppraiser appraises quotes of one platform. It is safe for concurrent use; the
// zero Appraiser is of no platform and refuses everything. It remembers the
// certificates and collateral it has checked, by their bytes, so that a platform
// seen before costs two signatures; times and rules are checked anew each time,
// so the cache changes no result.
type quoteAppraiser struct {
	of    attest.Platform
	known memory
}

// newTDX makes an appraiser of trust domains.
func newTDX() *quoteAppraiser { return &quoteAppraiser{of: attest.TDX} }

// newSGX makes an appraiser of enclaves.
func newSGX() *quoteAppraiser { return &quoteAppraiser{of: attest.SGX} }

// Platform is [attest.TDX] or [attest.SGX].
func (a *quoteAppraiser) Platform() attest.Platform { return a.of }

// Genuine implements [attest.Appraiser].
func (a *quoteAppraiser) Genuine() closed.Appraiser { return closed.VouchFor(a) }

// Appraise appraises a quote; see the package comment for what it needs.
func (a *quoteAppraiser) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	q, err := parseQuote(raw, a.of)
	if err != nil {
		return attest.Claims{}, err
	}
	p, err := a.known.platform(bundle{a.of, q.chain, endorsed}, rules.Roots)
	if err != nil {
		return attest.Claims{}, err
	}
	if err := intel.CheckValidity(at, p.times...); err != nil {
		return attest.Claims{}, err
	}
	if err := q.signedBy(p.key); err != nil {
		return attest.Claims{}, err
	}
	if err := p.qe.checkEnclave(q.qe); err != nil {
		return attest.Claims{}, err
	}
	v, err := p.assess(q)
	if err != nil {
		return attest.Claims{}, err
	}
	if !p.hasLists && rules.CRL != attest.CRLIfPresent {
		return attest.Claims{}, wire.Refuse(wire.CRLMissing, "dcap: revocation lists", "fewer than two", "that of the root and that of the PCK authority")
	}
	if err := permit(p, v, rules.DCAP); err != nil {
		return attest.Claims{}, err
	}
	if err := permitBody(q, a.of, rules.DCAP); err != nil {
		return attest.Claims{}, err
	}
	return newClaims(q, a.of, p, v), nil
}

// UnverifiedClaims are what a quote states about itself. What its certificate and the
// vendor's collateral state is not among them.
func (a *quoteAppraiser) UnverifiedClaims(raw []byte) (attest.Claims, error) {
	q, err := parseQuote(raw, a.of)
	if err != nil {
		return attest.Claims{}, err
	}
	return q.unverifiedClaims(a.of), nil
}
