//go:build linux

package nitro

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/hf/nsm/request"
	"github.com/hf/nsm/response"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// fakeModule is a device that answers what a test says.
type fakeModule func(*request.Attestation) (response.Response, error)

func (f fakeModule) Send(r request.Request) (response.Response, error) {
	return f(r.(*request.Attestation))
}

func (fakeModule) Close() error { return nil }

func attester(f fakeModule) *Attester {
	return &Attester{open: func() (module, error) { return f, nil }}
}

func TestAttester(t *testing.T) {
	vendor := attesttest.NewNitroVendor(now)
	enclave := vendor.Attester(attesttest.MeasureNitro("image"))
	device := attester(func(r *request.Attestation) (response.Response, error) {
		evidence, err := enclave.Attest(context.Background(), attest.ReportData(r.UserData))
		return response.Response{Attestation: &response.Attestation{Document: evidence.Raw}}, err
	})
	data := attest.Bind(wire.LabelTrust, []byte("nonce"))
	evidence, err := device.Attest(context.Background(), data)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := Appraiser{}.Appraise(evidence.Raw, nil, vendor.Rules(), now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(claims.ReportData, data[:]) {
		t.Errorf("report data = %x, want %x", claims.ReportData, data)
	}
}

func TestAttesterFaults(t *testing.T) {
	answer := func(r response.Response, err error) *Attester {
		return attester(func(*request.Attestation) (response.Response, error) { return r, err })
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	tests := []struct {
		name   string
		ctx    context.Context
		device *Attester
		want   error
	}{
		{"no device", context.Background(), &Attester{open: func() (module, error) { return nil, errors.New("none") }}, wire.NotThisDevice},
		{"a device that fails", context.Background(), answer(response.Response{}, errors.New("ioctl")), wire.NotThisDevice},
		{"an error", context.Background(), answer(response.Response{Error: response.ECInputTooLarge}, nil), wire.NotThisDevice},
		{"another answer", context.Background(), answer(response.Response{GetRandom: &response.GetRandom{}}, nil), wire.NotThisDevice},
		{"an empty document", context.Background(), answer(response.Response{Attestation: &response.Attestation{}}, nil), wire.NotThisDevice},
		{"cancelled", cancelled, answer(response.Response{}, nil), context.Canceled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := tt.device.Attest(tt.ctx, attest.ReportData{1})
			if !errors.Is(err, tt.want) || got.Raw != nil {
				t.Errorf("err = %v, want %v", err, tt.want)
			}
		})
	}
}

func TestNewAttesterElsewhere(t *testing.T) {
	if _, err := NewAttester(); err != nil && !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("err = %v, want an attester or reason %q", err, wire.NotThisDevice)
	}
}
