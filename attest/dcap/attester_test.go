//go:build linux

package dcap

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// driver returns a kernel's configfs-tsm whose driver responds with out.
func driver(provider string, out func(in []byte) ([]byte, error)) configfsi.Client {
	reports := faketsm.ReportV7(0)
	reports.Random = rand.Reader
	read := reports.ReadAttr
	reports.ReadAttr = func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
		switch attr {
		case "provider":
			return []byte(provider + "\n"), nil
		case "outblob":
			return out(e.InAttrs["inblob"].Value)
		}
		return read(e, attr)
	}
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": reports}}
}

// answers returns a function that returns the quotes of a device.
func answers(d *attesttest.DCAPDevice) func(in []byte) ([]byte, error) {
	return func(in []byte) ([]byte, error) {
		evidence, err := d.Attest(context.Background(), attest.ReportData(in))
		return evidence.Raw, err
	}
}

func TestTDXAttester(t *testing.T) {
	vendor := attesttest.NewDCAPVendor(now)
	guest := vendor.Chip(vendor.TCB).Attester(attesttest.MeasureTDX("guest"))
	data := attest.BindReportData(wire.LabelTrust, []byte("nonce"))
	evidence, err := (&TDXAttester{device: driver(provider, answers(guest))}).Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := newTDX().Appraise(evidence.Raw, vendor.Endorsements(attest.TDX), vendor.Rules(), now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(claims.ReportData, data[:]) {
		t.Errorf("report data = %x, want %x", claims.ReportData, data)
	}
}

func TestTDXAttesterFaults(t *testing.T) {
	vendor := attesttest.NewDCAPVendor(now)
	chip := vendor.Chip(vendor.TCB)
	guest, enclave := answers(chip.Attester(attesttest.MeasureTDX("guest"))), answers(chip.Attester(attesttest.MeasureSGX("guest")))
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name   string
		ctx    context.Context
		device configfsi.Client
		want   error
	}{
		{"another TEE", t.Context(), driver("sev_guest", guest), wire.NotThisDevice},
		{"a driver that fails", t.Context(), driver(provider, func([]byte) ([]byte, error) { return nil, fs.ErrNotExist }), wire.NotThisDevice},
		{"nothing", t.Context(), driver(provider, func([]byte) ([]byte, error) { return nil, nil }), wire.Malformed},
		{"an enclave's quote", t.Context(), driver(provider, enclave), wire.Malformed},
		{"cancelled", cancelled, driver(provider, guest), context.Canceled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := (&TDXAttester{device: tt.device}).Attest(tt.ctx, attest.ReportData{1})
			if !errors.Is(err, tt.want) || got.Raw != nil {
				t.Errorf("err = %v, want %v", err, tt.want)
			}
		})
	}
}

// pseudo makes a folder like Gramine's /dev/attestation, with a pipe for each pseudo-file: it
// responds to what is written.
func pseudo(t *testing.T, kind string, out func(in []byte) ([]byte, error)) string {
	t.Helper()
	dir := t.TempDir()
	request, quote := filepath.Join(dir, "user_report_data"), filepath.Join(dir, "quote")
	for _, pipe := range []string{request, quote} {
		if err := syscall.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "attestation_type"), []byte(kind), 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			in, err := os.ReadFile(request)
			if err != nil || len(in) != 64 {
				return // the test has ended
			}
			answer, err := out(in)
			if err != nil || os.WriteFile(quote, answer, 0o600) != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { // releases the goroutine, which waits for a writer
		if f, err := os.OpenFile(request, os.O_RDWR, 0); err == nil {
			f.Close()
		}
	})
	return dir
}

func TestSGXAttester(t *testing.T) {
	vendor := attesttest.NewDCAPVendor(now)
	enclave := vendor.Chip(vendor.TCB).Attester(attesttest.MeasureSGX("enclave"))
	a := &SGXAttester{dir: pseudo(t, "dcap\n", answers(enclave))}
	if err := a.checkDevice(); err != nil {
		t.Fatal(err)
	}
	for _, nonce := range []string{"one", "two"} {
		data := attest.BindReportData(wire.LabelTrust, []byte(nonce))
		evidence, err := a.Attest(t.Context(), data)
		if err != nil {
			t.Fatal(err)
		}
		claims, err := newSGX().Appraise(evidence.Raw, vendor.Endorsements(attest.SGX), vendor.Rules(), now)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(claims.ReportData, data[:]) {
			t.Errorf("report data = %x, want %x", claims.ReportData, data)
		}
	}
}

func TestSGXAttesterFaults(t *testing.T) {
	vendor := attesttest.NewDCAPVendor(now)
	guest := answers(vendor.Chip(vendor.TCB).Attester(attesttest.MeasureTDX("guest")))
	a := &SGXAttester{dir: pseudo(t, "dcap", guest)}
	if _, err := a.Attest(t.Context(), attest.ReportData{1}); !errors.Is(err, wire.Malformed) {
		t.Errorf("a trust domain's quote: err = %v, want reason %q", err, wire.Malformed)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Attest(cancelled, attest.ReportData{1}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: err = %v", err)
	}
	for _, kind := range []string{"none", "epid", ""} {
		if err := (&SGXAttester{dir: pseudo(t, kind, guest)}).checkDevice(); !errors.Is(err, wire.NotThisDevice) {
			t.Errorf("attestation %q: err = %v, want reason %q", kind, err, wire.NotThisDevice)
		}
	}
	empty := &SGXAttester{dir: t.TempDir()}
	if err := empty.checkDevice(); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("no device: err = %v, want reason %q", err, wire.NotThisDevice)
	}
	if _, err := empty.Attest(t.Context(), attest.ReportData{1}); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("no device: err = %v, want reason %q", err, wire.NotThisDevice)
	}
	if left, err := os.ReadDir(empty.dir); err != nil || len(left) > 0 {
		t.Errorf("asking left %v, %v in the device's folder", left, err)
	}
}

// TestSGXSeal: an enclave unseals its own secrets. An enclave with a different configuration (and
// the same Gramine key), one with a different key, and one without a key do not.
func TestSGXSeal(t *testing.T) {
	vendor := attesttest.NewDCAPVendor(now)
	chip := vendor.Chip(vendor.TCB)
	enclave := func(m attest.Measurement, key string) *SGXAttester {
		dir := pseudo(t, "dcap", answers(chip.Attester(m)))
		if err := os.Mkdir(filepath.Join(dir, "keys"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "keys", "_sgx_mrenclave"), []byte(key), 0o600); err != nil {
			t.Fatal(err)
		}
		return &SGXAttester{dir: dir}
	}
	own, configured := attesttest.MeasureSGX("authority"), attesttest.MeasureSGX("authority")
	configured.Registers[3].Value = make([]byte, 64)
	sealed, err := enclave(own, "sixteen byte key").Seal(t.Context(), []byte("root"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := enclave(own, "sixteen byte key").Unseal(t.Context(), sealed); err != nil || string(got) != "root" {
		t.Errorf("got %q, %v", got, err)
	}
	for name, other := range map[string]struct {
		enclave *SGXAttester
		want    wire.Reason
	}{
		"another key":           {enclave(own, "another 16 bytes"), wire.BadSignature},
		"another configuration": {enclave(configured, "sixteen byte key"), wire.BadSignature},
		"an empty key":          {enclave(own, ""), wire.NotThisDevice},
		"no keys":               {&SGXAttester{dir: pseudo(t, "dcap", answers(chip.Attester(own)))}, wire.NotThisDevice},
	} {
		if _, err := other.enclave.Unseal(t.Context(), sealed); !errors.Is(err, other.want) {
			t.Errorf("%s: err = %v, want reason %q", name, err, other.want)
		}
	}
}

func TestAttestersElsewhere(t *testing.T) {
	if _, err := NewTDXAttester(); err != nil && !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("TDX: err = %v, want an attester or reason %q", err, wire.NotThisDevice)
	}
	if _, err := NewSGXAttester(); err != nil && !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("SGX: err = %v, want an attester or reason %q", err, wire.NotThisDevice)
	}
}
