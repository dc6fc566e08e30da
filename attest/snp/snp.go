// Package snp appraises AMD SEV-SNP attestation reports, and asks the TEE it
// runs in for one.
//
// The appraiser trusts the AMD root keys (ARK) whose digests the rules name, and
// nothing else. Evidence is the report alone, 1184 bytes of version 2 to 5. The
// endorsements, by role, are
//
//	vcek or vlek  the certificate of the key that signed the report, DER
//	ask_ark       the ASK or ASVK, then the ARK, PEM, as AMD's KDS serves them
//	crl           the revocation list by the ARK, DER
//
// It refuses a chain that does not verify or is revoked or out of its time, a
// missing or outdated revocation list, a certificate of another chip, firmware
// or CPU generation than the report's, a signature that does not verify, a byte
// that is neither signed nor zero where it must be, and then whatever the rules
// do not accept: firmware below its floor, chips, launch keys, guest policy
// bits, privilege levels. docs/spec/evidence-snp.md has every byte and check.
//
// Forgery is refused before policy is applied: rules check signed fields only.
//
// [AzurePlatform] appraises the form of Azure's confidential virtual machines, where the
// report binds a TPM's key and that key quotes the PCRs; [AzureAttester] asks for it.
//
// Files, each using those before it: report.go, chain.go, permit.go, memory.go, snp.go,
// azure.go, screen.go, azureattester.go, platform.go, attester.go, seal.go,
// firmware.go, launch.go.
package snp

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/internal/pki"
	"github.com/cohort-tee/cohort/internal/wire"
)

// reportAppraiser appraises SEV-SNP reports. It is safe for concurrent use; the zero
// Appraiser is ready. It remembers the chains it has checked, by their bytes, so
// that a chip seen before costs one signature; times and rules are checked anew
// each time, so the cache changes no result.
type reportAppraiser struct {
	known memory
}

// Platform is [attest.SNP].
func (*reportAppraiser) Platform() attest.Platform { return attest.SNP }

// Genuine implements [attest.Appraiser].
func (a *reportAppraiser) Genuine() closed.Appraiser { return closed.VouchFor(a) }

// Appraise appraises a report; see the package comment for what it needs.
func (a *reportAppraiser) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	r, c, err := a.genuine(raw, endorsed, rules, at)
	if err != nil {
		return attest.Claims{}, err
	}
	if err := permitted(r, c, rules); err != nil {
		return attest.Claims{}, err
	}
	return claims(r, c), nil
}

// genuine reads a report that a chip of AMD's signed. Rules are asked for roots
// only.
func (a *reportAppraiser) genuine(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (report, *chain, error) {
	r, err := parseReport(raw)
	if err != nil {
		return report{}, nil, err
	}
	c, err := a.known.chain(bundleOf(r, endorsed), rules.Roots)
	if err != nil {
		return report{}, nil, err
	}
	if err := amd.CheckValidity(at, c.times...); err != nil {
		return report{}, nil, err
	}
	return r, c, r.signedBy(c)
}

// permitted asks the rules about a genuine report and its chain.
func permitted(r report, c *chain, rules attest.Rules) error {
	if !c.hasList && rules.CRL != attest.CRLIfPresent {
		return wire.Refuse(wire.CRLMissing, "snp: revocation list of "+c.product, "evidence without it", "one by its ARK")
	}
	return permit(r, c, rules.SNP)
}

// UnverifiedClaims are what a report states about itself. A report of version 2 does not
// state its CPU generation.
func (*reportAppraiser) UnverifiedClaims(raw []byte) (attest.Claims, error) {
	r, err := parseReport(raw)
	if err != nil {
		return attest.Claims{}, err
	}
	return claims(r, unverifiedChain(r)), nil
}

// unverifiedChain is what a report states about its chain.
func unverifiedChain(r report) *chain {
	return &chain{kind: r.signer, product: r.product, chip: r.ChipID}
}

// signedBy checks that the report is of the chip, firmware and generation that
// the chain vouches for, and the signature.
func (r report) signedBy(c *chain) error {
	if r.product != "" && r.product != c.product {
		return wire.Refuse(wire.WrongChip, "snp: CPU generation of the certificate", c.product, r.product)
	}
	if !c.vouchesFor(r.ChipID) {
		return wire.Refuse(wire.WrongChip, "snp: chip id of the certificate", hex.EncodeToString(c.chip), hex.EncodeToString(r.ChipID))
	}
	if got := tcbOf(c.product, r.ReportedTCB); got != c.tcb {
		return wire.Refuse(wire.WrongChip, "snp: firmware of the certificate", fmt.Sprintf("%+v", c.tcb), fmt.Sprintf("%+v", got))
	}
	signature, err := r.signature()
	if err != nil {
		return wire.Refuse(wire.BadSignature, "snp: signature encoding", err, "ECDSA P-384")
	}
	digest := sha512.Sum384(r.raw[:signedSize])
	if !ecdsa.VerifyASN1(c.key, digest[:], signature) {
		return wire.Refuse(wire.BadSignature, "snp: signature of the report", "a signature that does not verify", "one by the "+c.kind.String())
	}
	return nil
}

// claims are what the report states, once it is verified.
func claims(r report, c *chain) attest.Claims {
	return attest.Claims{
		Measurement: r.measurement(),
		ReportData:  r.ReportData,
		Debug:       r.policy.Debug,
		Chip:        c.deviceName(r),
		Issued:      pki.NewestIssue(c.times...),
		Details:     details(r, c),
	}
}

func (r report) measurement() attest.Measurement {
	return attest.Measurement{Platform: attest.SNP, Registers: []attest.Register{
		{Name: "measurement", Value: r.Measurement},
		{Name: "host-data", Value: r.HostData},
	}}
}
