//go:build linux

package snp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestAzureAttester: with a software TPM that has a key and a report, as Azure's paravisor leaves
// them, the attester's evidence is accepted, with the current PCRs. Without key and report it
// returns an error.
func TestAzureAttester(t *testing.T) {
	device := attesttest.NewTPMMaker(t).TPM(t)
	machine := tpm.Machine{Path: device.Path, Log: device.Log}
	if _, err := NewAzureAttester(machine); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("a TPM without a report: got %v, want %q", err, wire.NotThisDevice)
	}
	if _, err := machine.QuoteBy(azureKeyHandle, everyPCR(), nil); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("a TPM without the key: got %v, want %q", err, wire.NotThisDevice)
	}
	s := newAzureScene()
	device.Paravisor(t, s.device)
	a, err := NewAzureAttester(machine)
	if err != nil {
		t.Fatal(err)
	}
	judge := func() (attest.Result, error) {
		t.Helper()
		e, err := a.Attest(t.Context(), azureUse)
		if err != nil {
			t.Fatal(err)
		}
		return attest.NewVerifier(new(azureAppraiser)).Appraise(attest.Question{
			Evidence: e, Endorsements: s.endorse, ReportData: azureUse, At: now,
			Rules: map[attest.Platform]attest.Rules{attest.AzureSNP: s.rules},
		})
	}
	before, err := judge()
	if err != nil {
		t.Fatal(err)
	}
	device.Extend(t, 11, "another kernel")
	after, err := judge()
	if err != nil {
		t.Fatal(err)
	}
	got, other := before.Measurement().Registers, after.Measurement().Registers
	if bytes.Equal(got[2+11].Value, other[2+11].Value) || !bytes.Equal(got[2+4].Value, other[2+4].Value) {
		t.Errorf("got PCR 11 %x then %x, want another, and PCR 4 as before", got[2+11].Value, other[2+11].Value)
	}
}

// azureReport counts the vectors in which the paravisor's own report contains the parts that the
// vector has as files.
type azureReport struct {
	azureCaptured
	agree int
}

func (a *azureReport) Genuine() closed.Appraiser { return closed.VouchFor(a) }

func (a *azureReport) Appraise(raw []byte, files attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	report, runtime, err := parseHCL(files["hcl_report"])
	if err == nil && bytes.Equal(report, raw) && bytes.Equal(runtime, files["runtime_data"]) {
		a.agree++
	}
	return a.azureCaptured.Appraise(raw, files, rules, at)
}

// TestAzureReport: captured paravisor reports parse to the parts in their vectors.
func TestAzureReport(t *testing.T) {
	s, reports := azureSubject(t), new(azureReport)
	s.Appraiser = reports
	vectortest.Run(t, s)
	if reports.agree == 0 {
		t.Error("no report of a paravisor holds the parts of its vector")
	}
}

// paravisorReport returns a paravisor report with runtime data and padding.
func paravisorReport(runtime string) []byte {
	raw := append([]byte("HCLA"), make([]byte, 28+1184)...)
	raw[hclKind] = hclSNP
	for _, n := range []int{runtimeHeader + len(runtime), 1, hclSNP, hclSHA256, len(runtime)} {
		raw = binary.LittleEndian.AppendUint32(raw, uint32(n))
	}
	return append(append(raw, runtime...), make([]byte, 16)...)
}

func TestAzureReportRefusals(t *testing.T) {
	const end = hclHeader + 1184
	for name, change := range map[string]func(raw []byte) []byte{
		"nothing":                func([]byte) []byte { return nil },
		"another name":           func(raw []byte) []byte { raw[3] = 'B'; return raw },
		"a report of TDX":        func(raw []byte) []byte { raw[hclKind] = 4; return raw },
		"runtime data of TDX":    func(raw []byte) []byte { raw[end+8] = 4; return raw },
		"another digest":         func(raw []byte) []byte { raw[end+12] = 2; return raw },
		"no runtime data":        func(raw []byte) []byte { raw[end+16] = 0; return raw },
		"more than there is":     func(raw []byte) []byte { raw[end+16] = 255; return raw },
		"more than fits a word":  func(raw []byte) []byte { raw[end+19] = 255; return raw },
		"cut in its header":      func(raw []byte) []byte { return raw[:end+runtimeHeader-1] },
		"cut in its chip's part": func(raw []byte) []byte { return raw[:end-1] },
	} {
		report, runtime, err := parseHCL(change(paravisorReport(`{"keys":[]}`)))
		if !errors.Is(err, wire.Malformed) || report != nil || runtime != nil {
			t.Errorf("%s: got %d and %d bytes, %v, want malformed", name, len(report), len(runtime), err)
		}
	}
	if _, runtime, err := parseHCL(paravisorReport(`{"keys":[]}`)); err != nil || string(runtime) != `{"keys":[]}` {
		t.Errorf("unchanged: got %q, %v", runtime, err)
	}
}

// FuzzAzureReport: the parsed parts are at the places of the layout, and nothing panics.
func FuzzAzureReport(f *testing.F) {
	f.Add(paravisorReport(`{"keys":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		report, runtime, err := parseHCL(raw)
		if err != nil {
			return
		}
		if len(report) != 1184 || len(runtime) > maxRuntime || !bytes.Contains(raw[hclHeader+1184:], runtime) {
			t.Errorf("got %d and %d bytes of %d", len(report), len(runtime), len(raw))
		}
	})
}
