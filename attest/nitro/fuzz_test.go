package nitro

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/vectortest"
)

// FuzzDocument: the frame of every accepted document encodes to the same bytes, and every refusal
// has a reason.
func FuzzDocument(f *testing.F) {
	evidence, err := attesttest.NewNitroVendor(now).Attester(attesttest.MeasureNitro("image")).Attest(f.Context(), attest.ReportData{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(evidence.Raw)
	f.Add(evidence.Raw[:100])
	f.Add([]byte("\x84\x44\xa1\x01\x38\x22\xa0\x41\xa0\x41\x00"))
	for _, raw := range vectortest.Seeds(f, "aws-nitro", 16<<10) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := parse(raw)
		var refusal *attest.Refusal
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("refused without a reason: %v", err)
		}
		if err != nil {
			return
		}
		again, err := d.message.MarshalCBOR()
		if err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("encoded again: %v\n got %x\nwant %x", err, again, raw)
		}
		if _, err := d.certificates(); err != nil && !errors.As(err, &refusal) {
			t.Fatalf("certificates refused without a reason: %v", err)
		}
	})
}

// FuzzList: revocation lists that AWS did not sign are refused with a reason.
func FuzzList(f *testing.F) {
	vendor := attesttest.NewNitroVendor(now)
	good := vendor.Endorsements()["root_crl"]
	evidence, err := vendor.Attester(attesttest.MeasureNitro("image")).Attest(f.Context(), attest.ReportData{1})
	if err != nil {
		f.Fatal(err)
	}
	_, chain, err := genuine(evidence.Raw, vendor.Rules(), now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, der []byte) {
		_, err := revocations(chain, attest.Endorsements{"root_crl": der}, attest.CRLRequired, now)
		var refusal *attest.Refusal
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("refused without a reason: %v", err)
		}
		if err == nil && len(der) > 0 && !bytes.Equal(der, good) {
			t.Fatalf("accepted %x", der)
		}
		_ = wholeOf(der, nil)
	})
}
