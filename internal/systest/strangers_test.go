package systest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit"
)

// TestStrangersAndTheVendor: units enrol on chips that AMD never made. Those that can be
// refused without AMD's documents cause no request to AMD. The others, with evidence of the
// right program for their own request, cause at most two requests to AMD. Units on the
// known machine are served throughout.
func TestStrangersAndTheVendor(t *testing.T) {
	v := newVendors(t)
	e := settle(t, v, attest.Nitro, attest.SNP)
	if _, err := e.enrol(attest.SNP, "scoring 1"); err != nil {
		t.Fatal(err)
	}
	forger := attesttest.NewSNPVendor("Milan", v.wall())
	forged := func(program string) error {
		t.Helper()
		config := e.UnitConfig("scoring", program)
		config.Attester, config.Clock = forger.Chip(attest.SNPTCB{Bootloader: 3, SNP: 22, Microcode: 115}).Attester(attesttest.MeasureSNP(program)), e.read
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		u, err := unit.Start(ctx, config)
		if err == nil {
			u.Close()
			t.Fatal("a forged chip has a certificate")
		}
		return err
	}
	before := v.requests()
	for range 5 {
		testworld.Refused(t, forged("scoring 2"), wire.NotMeasured)
	}
	if got := v.requests() - before; got != 0 {
		t.Errorf("AMD was asked %d times about programs that policy does not name", got)
	}
	limited := 0
	for range 6 {
		if err := forged("scoring 1"); errors.Is(err, wire.TooMany) {
			limited++
		}
	}
	if got := v.requests() - before; got > 2 || limited == 0 {
		t.Errorf("AMD was asked %d times about chips that do not exist, and %d units were told of the limit; want at most 2, and the others", got, limited)
	}
	before = v.requests()
	for range 3 {
		if _, err := e.enrol(attest.SNP, "scoring 1"); err != nil {
			t.Errorf("a unit of the known machine: %v", err)
		}
	}
	if got := v.requests() - before; got != 0 {
		t.Errorf("AMD was asked %d times about what is at hand", got)
	}
}
