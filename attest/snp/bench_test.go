package snp

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/bench"
	"github.com/google/go-sev-guest/abi"
)

// BenchmarkAppraise compares an appraisal with its floor, one P-384 signature verification (goal
// G1: at most 1.15 times the floor for a known chip).
func BenchmarkAppraise(b *testing.B) {
	vendor := attesttest.NewSNPVendor("Milan", now)
	chip := vendor.Chip(attest.SNPTCB{SNP: 1})
	evidence, err := chip.Attester(attesttest.MeasureSNP("guest")).Attest(b.Context(), attest.ReportData{1})
	if err != nil {
		b.Fatal(err)
	}
	endorsed, rules := chip.Endorsements(), vendor.Rules()
	appraise := func(b *testing.B, a *reportAppraiser) {
		if _, err := a.Appraise(evidence.Raw, endorsed, rules, now); err != nil {
			b.Fatal(err)
		}
	}
	c, err := bundleOf(report{}, endorsed).verify()
	if err != nil {
		b.Fatal(err)
	}
	signature, err := abi.ReportToSignatureDER(evidence.Raw)
	if err != nil {
		b.Fatal(err)
	}
	seen := new(reportAppraiser)
	bench.Compare(b,
		bench.Contender{Name: "floor", Cost: bench.Repeat(50, func() {
			digest := sha512.Sum384(evidence.Raw[:0x2a0])
			if !ecdsa.VerifyASN1(c.key, digest[:], signature) {
				b.Fatal("the signature does not verify")
			}
		})},
		bench.Contender{Name: "seen", Cost: bench.Repeat(50, func() { appraise(b, seen) })},
		bench.Contender{Name: "new", Cost: bench.Repeat(50, func() { appraise(b, new(reportAppraiser)) })})
	bench.Allocates(b, "seen", func() { appraise(b, seen) })
}
