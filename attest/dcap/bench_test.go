package dcap

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/bench"
)

// floor does the least work of any verifier for a quote of a known platform: it verifies the
// PCK's signature over the QE report, the digest that binds the attestation key to that report,
// and the key's signature over the quote.
func floor(q quote, pck *ecdsa.PublicKey) bool {
	if !verify(pck, q.qe, q.qeSigned) {
		return false
	}
	digest := sha256.Sum256(append(append([]byte{}, q.key...), q.qeAuth...))
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, q.key...))
	return err == nil && [32]byte(q.qe.reportData()[:32]) == digest && verify(key, q.signed, q.signature)
}

// BenchmarkAppraise compares an appraisal with the full TCB policy with its floor (goal G2: at
// most 1.35 times the floor for a known platform and known collateral).
func BenchmarkAppraise(b *testing.B) {
	for _, of := range []attest.Platform{attest.TDX, attest.SGX} {
		b.Run(string(of), func(b *testing.B) { benchmark(b, of) })
	}
}

func benchmark(b *testing.B, of attest.Platform) {
	vendor := attesttest.NewDCAPVendor(now)
	measurement, fresh := attesttest.MeasureTDX("guest"), newTDX
	if of == attest.SGX {
		measurement, fresh = attesttest.MeasureSGX("guest"), newSGX
	}
	evidence, err := vendor.Chip(vendor.TCB).Attester(measurement).Attest(b.Context(), attest.ReportData{1})
	if err != nil {
		b.Fatal(err)
	}
	endorsed, rules := vendor.Endorsements(of), vendor.Rules()
	appraise := func(b *testing.B, a *quoteAppraiser) {
		if _, err := a.Appraise(evidence.Raw, endorsed, rules, now); err != nil {
			b.Fatal(err)
		}
	}
	q, err := parseQuote(evidence.Raw, of)
	if err != nil {
		b.Fatal(err)
	}
	p, err := bundle{of, q.chain, endorsed}.verify()
	if err != nil {
		b.Fatal(err)
	}
	seen := fresh()
	bench.Compare(b,
		bench.Contender{Name: "floor", Cost: bench.Repeat(100, func() {
			if !floor(q, p.key) {
				b.Fatal("a signature does not verify")
			}
		})},
		bench.Contender{Name: "seen", Cost: bench.Repeat(100, func() { appraise(b, seen) })},
		bench.Contender{Name: "new", Cost: bench.Repeat(20, func() { appraise(b, fresh()) })})
	bench.Allocates(b, "seen", func() { appraise(b, seen) })
}
