package attesttest_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
)

var dcapTime = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func TestDCAPDeviceStops(t *testing.T) {
	vendor := attesttest.NewDCAPVendor(dcapTime)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := vendor.Chip(vendor.TCB).Attester(attesttest.MeasureSGX("enclave")).Attest(cancelled, attest.ReportData{})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want %v", err, context.Canceled)
	}
}
