package nitro

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/vectortest"
)

// FuzzDocumentParts: a security module signs well-formed documents with arbitrary fields.
// Accepted documents have the signed values, and all others are refused with a reason.
func FuzzDocumentParts(f *testing.F) {
	vendor := attesttest.NewNitroVendor(now)
	device := vendor.Attester(attesttest.MeasureNitro("image"))
	f.Add("i-test", "SHA384", int64(0), byte(16), byte(48), byte(2), []byte{1}, []byte{2}, []byte{3})
	for _, raw := range vectortest.Seeds(f, "aws-nitro", 16<<10) {
		d, err := parse(raw)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(d.ModuleID, d.Digest, int64(0), byte(len(d.PCRs)), byte(48), byte(len(d.CABundle)), d.PublicKey, d.UserData, d.Nonce)
	}
	f.Fuzz(func(t *testing.T, module, digest string, after int64, pcrs, size, certificates byte, public, user, nonce []byte) {
		device.Edit = func(d *attesttest.NitroDocument) {
			d.ModuleID, d.Digest, d.Made = module, digest, now.Add(time.Duration(after)*time.Millisecond)
			for i := range uint64(pcrs) {
				if value := make([]byte, size); d.PCRs[i] == nil || len(value) != len(d.PCRs[i]) {
					d.PCRs[i] = value
				}
			}
			for len(d.Bundle) < int(certificates%32) {
				d.Bundle = append(d.Bundle, d.Certificate)
			}
			d.PublicKey, d.UserData, d.Nonce = public, user, nonce
		}
		e, err := device.Attest(t.Context(), attest.ReportData{})
		if err != nil {
			t.Fatal(err)
		}
		claims, err := documentAppraiser{}.Appraise(e.Raw, nil, vendor.Rules(), now.Add(time.Second))
		if refusal := (*attest.Refusal)(nil); err != nil && !errors.As(err, &refusal) {
			t.Fatalf("refused without a reason: %v", err)
		}
		if err == nil && (!bytes.Equal(claims.ReportData, user) || module == "" || digest != "SHA384" || pcrs > maxPCR+1 || pcrs > 0 && size != pcrSize) {
			t.Fatalf("accepted %+v", claims)
		}
	})
}
