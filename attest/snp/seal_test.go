//go:build linux

package snp

import (
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
	labi "github.com/google/go-sev-guest/client/linuxabi"
)

// TestSeal: a guest unseals its own secrets. A debug guest with the same digest, and a different
// guest, do not. The fake stands for the firmware, which derives the key from the requested
// fields.
func TestSeal(t *testing.T) {
	chip := attesttest.NewSNPVendor("Milan", now).Chip(attest.SNPTCB{SNP: 1})
	guest := func(name string, policy byte) *Attester {
		g := chip.Attester(attesttest.MeasureSNP(name))
		g.Edit = func(report []byte) { report[0x0a] |= policy }
		device := driver(provider, nil, func(in []byte) ([]byte, error) {
			evidence, err := g.Attest(context.Background(), attest.ReportData(in))
			return evidence.Raw, err
		})
		return &Attester{device: device, derive: func(r labi.SnpDerivedKeyReqABI) ([]byte, error) {
			own, err := g.Attest(context.Background(), attest.ReportData{})
			return attesttest.DeriveSNP(own.Raw, r.GuestFieldSelect, uint64(r.Vmpl)), err
		}}
	}
	sealed, err := guest("authority", 0).Seal(t.Context(), []byte("root"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := guest("authority", 0).Unseal(t.Context(), sealed); err != nil || string(got) != "root" {
		t.Errorf("got %q, %v", got, err)
	}
	const debug = 1 << (19 - 16)
	for name, other := range map[string]*Attester{"another guest": guest("other", 0), "a debug guest": guest("authority", debug)} {
		if _, err := other.Unseal(t.Context(), sealed); !errors.Is(err, wire.BadSignature) {
			t.Errorf("%s: err = %v, want reason %q", name, err, wire.BadSignature)
		}
	}
	silent := guest("authority", 0)
	silent.derive = func(labi.SnpDerivedKeyReqABI) ([]byte, error) { return nil, syscall.ENOENT }
	if _, err := silent.Seal(t.Context(), nil, nil); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("no %s: err = %v, want reason %q", guestDevice, err, wire.NotThisDevice)
	}
}
