package nitro

import (
	"bytes"
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
)

// FuzzDocument demands that the frame of what parses encodes to the same bytes,
// and that all else has a reason.
func FuzzDocument(f *testing.F) {
	evidence, err := attesttest.NewNitroVendor(now).Attester(attesttest.MeasureNitro("image")).Attest(f.Context(), attest.ReportData{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(evidence.Raw)
	f.Add(evidence.Raw[:100])
	f.Add([]byte("\x84\x44\xa1\x01\x38\x22\xa0\x41\xa0\x41\x00"))
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
