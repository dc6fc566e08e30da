package dcap

import (
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
)

func TestZeroAppraiserRefuses(t *testing.T) {
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	vendor := attesttest.NewDCAPVendor(at)
	chip := vendor.Chip(vendor.TCB)
	evidence, err := chip.Attester(attesttest.MeasureTDX("guest")).Attest(t.Context(), attest.ReportData{1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := new(quoteAppraiser).Appraise(evidence.Raw, vendor.Endorsements(attest.TDX), vendor.Rules(), at); !errors.Is(err, wire.Malformed) {
		t.Errorf("err = %v, want reason %q", err, wire.Malformed)
	}
}
