package attesttest_test

import (
	"context"
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
)

var errBroken = errors.New("broken")

func TestMeasureSeparates(t *testing.T) {
	names := []attest.Measurement{
		attesttest.Measure("a"), attesttest.Measure("b"), attesttest.Measure("a", ""), attesttest.Measure("a", "b"), attesttest.Measure("a", "b", "c"),
	}
	for i, m := range names {
		for j, other := range names {
			if same := attest.Match(m, other) == nil; same != (i == j) {
				t.Errorf("%v and %v: got same %v", m, other, same)
			}
		}
	}
}

func TestSealer(t *testing.T) {
	chip := attesttest.NewVendor().Chip()
	a, b := attesttest.Measure("a"), attesttest.Measure("b")
	own, err := chip.Attester(a).Seal(t.Context(), []byte("secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	both, err := chip.Attester(a).Seal(t.Context(), []byte("secret"), []attest.ReferenceValue{a, b})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		device *attesttest.Device
		sealed []byte
		want   error
	}{
		{"own", chip.Attester(a), own, nil},
		{"another program", chip.Attester(b), own, wire.NotMeasured},
		{"a set with it", chip.Attester(b), both, nil},
		{"another chip", attesttest.NewVendor().Chip().Attester(a), own, wire.BadSignature},
		{"broken", &attesttest.Device{Faults: attesttest.Faults{Error: errBroken}}, own, errBroken},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.device.Unseal(t.Context(), c.sealed)
			if !errors.Is(err, c.want) || c.want == nil && string(got) != "secret" {
				t.Errorf("got %q, %v, want %v", got, err, c.want)
			}
		})
	}
}

func TestBrokenDevice(t *testing.T) {
	device := attesttest.NewVendor().Chip().Attester(attesttest.Measure("a"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := device.Attest(ctx, attest.ReportData{1}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	device.Faults.Error = errBroken
	if _, err := device.Attest(t.Context(), attest.ReportData{1}); !errors.Is(err, errBroken) {
		t.Errorf("attest: got %v, want %v", err, errBroken)
	}
	if _, err := device.Seal(t.Context(), nil, nil); !errors.Is(err, errBroken) {
		t.Errorf("seal: got %v, want %v", err, errBroken)
	}
}
