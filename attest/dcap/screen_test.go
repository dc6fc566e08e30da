package dcap_test

import (
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestScreen: without any document of Intel's, a quote is refused if no platform of Intel's
// signed it, or if the rules refuse it.
func TestScreen(t *testing.T) {
	for _, row := range []struct {
		name   string
		change change
		want   attest.Reason
	}{
		{"good", func(*testing.T, *scene) {}, ""},
		{"a bit of the trust domain", flip(body + 136), wire.BadSignature},
		{"a bit of the quoting enclave's report", flip(qeReport + 64), wire.BadSignature},
		{"a root that policy does not name", func(_ *testing.T, s *scene) {
			s.rules.Roots = []attest.Digest{attesttest.NewDCAPVendor(now).Root()}
		}, wire.UnknownRoot},
		{"another vendor's platform", func(_ *testing.T, s *scene) {
			other := attesttest.NewDCAPVendor(now)
			s.use(attest.TDX, other.Chip(other.TCB))
		}, wire.UnknownRoot},
		{"no chips", func(_ *testing.T, s *scene) { s.rules.DCAP.Chips = attest.List{} }, wire.NoPlatform},
		{"past the certificate's end", func(_ *testing.T, s *scene) { s.question.At = now.AddDate(100, 0, 0) }, wire.Expired},
		{"made for another use", func(_ *testing.T, s *scene) { s.question.ReportData = attest.ReportData{1} }, wire.BadNonce},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newScene(attest.TDX)
			row.change(t, s)
			s.evidence(t)
			s.question.Endorsements, s.question.Evidence.Endorsed = nil, nil
			s.question.Rules = map[attest.Platform]attest.Rules{attest.TDX: s.rules}
			_, err := attest.NewVerifier(dcap.TDXPlatform().Appraiser(), dcap.SGXPlatform().Appraiser()).Screen(s.question)
			if row.want == "" && err != nil || row.want != "" && !errors.Is(err, row.want) {
				t.Errorf("got %v, want reason %q", err, row.want)
			}
		})
	}
}

// FuzzScreen changes one byte of a quote before or after signing. A quote that Screen refuses
// without documents is also refused by Appraise with them, and always with a reason.
func FuzzScreen(f *testing.F) {
	vendor := attesttest.NewDCAPVendor(now)
	chip := vendor.Chip(vendor.TCB)
	verifier := attest.NewVerifier(dcap.TDXPlatform().Appraiser(), dcap.SGXPlatform().Appraiser())
	for _, at := range []uint16{0, 4, body, body + 120, body + 123, body + 136, body + 520, signature, key, qeReport, qeSigned, uint16(pckChain)} {
		f.Add(at, byte(1), false)
		f.Add(at, byte(0x80), true)
	}
	f.Fuzz(func(t *testing.T, at uint16, bits byte, after bool) {
		device := chip.Attester(attesttest.MeasureTDX("guest"))
		if !after {
			device.Edit = func(signed []byte) { signed[int(at)%len(signed)] ^= bits }
		}
		evidence, err := device.Attest(t.Context(), use)
		if err != nil {
			t.Fatal(err)
		}
		if after {
			evidence.Raw[int(at)%len(evidence.Raw)] ^= bits
		}
		q := attest.Question{Evidence: evidence, ReportData: use, At: now, Rules: map[attest.Platform]attest.Rules{attest.TDX: vendor.Rules()}}
		_, screened := verifier.Screen(q)
		q.Endorsements = vendor.Endorsements(attest.TDX)
		_, appraised := verifier.Appraise(q)
		var refusal *attest.Refusal
		if screened != nil && (appraised == nil || !errors.As(screened, &refusal)) {
			t.Fatalf("byte %d: screened %v, appraised %v", at, screened, appraised)
		}
	})
}
