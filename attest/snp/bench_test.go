package snp

import (
	"crypto/ecdsa"
	"crypto/sha512"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/google/go-sev-guest/abi"
)

// BenchmarkAppraise puts an appraisal (goal G1: at most 1.15 times the floor
// for a chip seen before) beside its floor, one P-384 signature.
func BenchmarkAppraise(b *testing.B) {
	vendor := attesttest.NewSNPVendor("Milan", now)
	chip := vendor.Chip(attest.SNPTCB{SNP: 1})
	evidence, err := chip.Attester(attesttest.MeasureSNP("guest")).Attest(b.Context(), attest.ReportData{1})
	if err != nil {
		b.Fatal(err)
	}
	endorsed, rules := chip.Endorsements(), vendor.Rules()
	appraise := func(b *testing.B, a *Appraiser) {
		if _, err := a.Appraise(evidence.Raw, endorsed, rules, now); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("floor", func(b *testing.B) {
		c, err := bundleOf(report{signer: abi.SignerInfo{}}, endorsed).check()
		if err != nil {
			b.Fatal(err)
		}
		signature, err := abi.ReportToSignatureDER(evidence.Raw)
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			digest := sha512.Sum384(evidence.Raw[:0x2a0])
			if !ecdsa.VerifyASN1(c.key, digest[:], signature) {
				b.Fatal("the signature does not verify")
			}
		}
	})
	b.Run("seen", func(b *testing.B) {
		b.ReportAllocs()
		a := new(Appraiser)
		for b.Loop() {
			appraise(b, a)
		}
	})
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			appraise(b, new(Appraiser))
		}
	})
}
