//go:build linux

package nitro

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/fxamacker/cbor/v2"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// fakeModule is a device that responds as the test defines.
type fakeModule func(attestationRequest) (response any, err error)

func (f fakeModule) exchange(request, response []byte) (int, error) {
	var r map[string]attestationRequest
	if err := cbor.Unmarshal(request, &r); err != nil {
		return 0, err
	}
	content, err := f(r["Attestation"])
	if err != nil {
		return 0, err
	}
	if raw, is := content.([]byte); is {
		return copy(response, raw), nil
	}
	encoded, err := cbor.Marshal(content)
	return copy(response, encoded), err
}

func (fakeModule) Close() error { return nil }

// longModule reports a response longer than the buffer.
type longModule struct{ fakeModule }

func (longModule) exchange(_, response []byte) (int, error) { return len(response) + 1, nil }

func attester(m module) *Attester {
	return &Attester{open: func() (module, error) { return m, nil }}
}

// responding returns a response with a document.
func responding(raw []byte) any {
	return map[string]any{"Attestation": map[string]any{"document": raw}}
}

func TestAttester(t *testing.T) {
	vendor := attesttest.NewNitroVendor(now)
	enclave := vendor.Attester(attesttest.MeasureNitro("image"))
	device := attester(fakeModule(func(r attestationRequest) (any, error) {
		evidence, err := enclave.Attest(context.Background(), attest.ReportData(r.UserData))
		return responding(evidence.Raw), err
	}))
	data := attest.BindReportData(wire.LabelTrust, []byte("nonce"))
	evidence, err := device.Attest(context.Background(), data)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := documentAppraiser{}.Appraise(evidence.Raw, nil, vendor.Rules(), now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(claims.ReportData, data[:]) {
		t.Errorf("report data = %x, want %x", claims.ReportData, data)
	}
}

func TestAttesterFaults(t *testing.T) {
	responds := func(r any, err error) *Attester {
		return attester(fakeModule(func(attestationRequest) (any, error) { return r, err }))
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
		{"a device that fails", context.Background(), responds(nil, errors.New("ioctl")), wire.NotThisDevice},
		{"an error", context.Background(), responds(map[string]any{"Error": "InputTooLarge"}, nil), wire.NotThisDevice},
		{"another response", context.Background(), responds(map[string]any{"GetRandom": map[string]any{"random": []byte{1}}}, nil), wire.NotThisDevice},
		{"an empty document", context.Background(), responds(responding(nil), nil), wire.NotThisDevice},
		{"an empty response", context.Background(), responds([]byte{}, nil), wire.NotThisDevice},
		{"a response that is not CBOR", context.Background(), responds([]byte{0xff}, nil), wire.NotThisDevice},
		{"a response that is cut off", context.Background(), responds([]byte{0xa1, 0x6b, 'A'}, nil), wire.NotThisDevice},
		{"a response longer than its buffer", context.Background(), attester(longModule{}), wire.NotThisDevice},
		{"cancelled", cancelled, responds(nil, nil), context.Canceled},
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

// TestModuleRequest fixes the bytes of a request: the module parses CBOR with these names, and
// null for absent fields.
func TestModuleRequest(t *testing.T) {
	var got []byte
	device := attester(recordingModule{to: &got})
	if _, err := device.Attest(t.Context(), attest.ReportData{0: 0xab, 63: 0xcd}); err == nil {
		t.Error("accepted a response without a document")
	}
	want := "a16b4174746573746174696f6ea369757365725f646174615840ab" + strings.Repeat("00", 62) + "cd656e6f6e6365f66a7075626c69635f6b6579f6"
	if hex.EncodeToString(got) != want {
		t.Errorf("got %x, want %s", got, want)
	}
}

// recordingModule records the request and returns an empty response.
type recordingModule struct {
	fakeModule
	to *[]byte
}

func (m recordingModule) exchange(request, _ []byte) (int, error) {
	*m.to = bytes.Clone(request)
	return 0, nil
}

// TestIoctl: the driver of another device refuses the request, and the request number is that of
// the kernel.
func TestIoctl(t *testing.T) {
	if got := uint32(nsmIoctl); unsafe.Sizeof(uintptr(0)) == 8 && got != 0xc0200a00 {
		t.Errorf("ioctl %#x, want 0xc0200a00", got)
	}
	other, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	m := deviceModule{other}
	defer m.Close()
	if _, err := m.exchange([]byte{1}, make([]byte, 8)); !errors.Is(err, syscall.ENOTTY) {
		t.Errorf("err = %v, want %v", err, syscall.ENOTTY)
	}
}
