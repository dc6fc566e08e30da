package tpm

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"testing"

	"github.com/cohort-tee/cohort/bench"
)

// BenchmarkAppraise compares an appraisal with its floor, one P-256 signature verification (goal
// G3: at most 1.2 times the floor for a known key).
func BenchmarkAppraise(b *testing.B) {
	s := newScene(b)
	evidence := s.evidence(s.launch("agent", "one"))
	parts, err := parse(evidence.Raw)
	if err != nil {
		b.Fatal(err)
	}
	key, err := parseKey(parts.Key)
	if err != nil {
		b.Fatal(err)
	}
	signature, err := ParseSignature(parts.signature)
	if err != nil {
		b.Fatal(err)
	}
	appraise := func(a *quoteAppraiser) {
		if _, err := a.Appraise(evidence.Raw, evidence.Endorsed, s.rules, s.at); err != nil {
			b.Fatal(err)
		}
	}
	seen := new(quoteAppraiser)
	bench.Compare(b,
		bench.Contender{Name: "floor", Cost: bench.Repeat(200, func() {
			digest := sha256.Sum256(parts.quote)
			if !ecdsa.VerifyASN1(key.(*ecdsa.PublicKey), digest[:], signature) {
				b.Fatal("the signature does not verify")
			}
		})},
		bench.Contender{Name: "seen", Cost: bench.Repeat(200, func() { appraise(seen) })},
		bench.Contender{Name: "new", Cost: bench.Repeat(200, func() { appraise(new(quoteAppraiser)) })})
	bench.Allocates(b, "seen", func() { appraise(seen) })
}
