//go:build linux

package snp

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"github.com/google/go-configfs-tsm/configfs/faketsm"
	"github.com/google/go-sev-guest/abi"
	"github.com/google/go-sev-guest/kds"
	spb "github.com/google/go-sev-guest/proto/sevsnp"
)

var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// driver returns a kernel's configfs-tsm whose SNP driver responds with out, on a host that has a
// certificate table.
func driver(provider string, table []byte, out func(in []byte) ([]byte, error)) configfsi.Client {
	reports := faketsm.ReportV7(0)
	reports.Random = rand.Reader
	read := reports.ReadAttr
	reports.ReadAttr = func(e *faketsm.ReportEntry, attr string) ([]byte, error) {
		switch attr {
		case "provider":
			return []byte(provider + "\n"), nil
		case "outblob":
			return out(e.InAttrs["inblob"].Value)
		case "auxblob":
			return table, nil
		}
		return read(e, attr)
	}
	return &faketsm.Client{Subsystems: map[string]configfsi.Client{"report": reports}}
}

func TestAttester(t *testing.T) {
	vendor := attesttest.NewSNPVendor("Genoa", now)
	chip := vendor.Chip(attest.SNPTCB{SNP: 1})
	guest := chip.Attester(attesttest.MeasureSNP("guest"))
	device := driver(provider, nil, func(in []byte) ([]byte, error) {
		evidence, err := guest.Attest(context.Background(), attest.ReportData(in))
		return evidence.Raw, err
	})
	data := attest.BindReportData(wire.LabelTrust, []byte("nonce"))
	evidence, err := (&Attester{device: device}).Attest(context.Background(), data)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := new(reportAppraiser).Appraise(evidence.Raw, chip.Endorsements(), vendor.Rules(), now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(claims.ReportData, data[:]) {
		t.Errorf("report data = %x, want %x", claims.ReportData, data)
	}
}

// TestHostCertificates: a report is accepted with only the certificates in the host's table and
// the revocation list.
func TestHostCertificates(t *testing.T) {
	vendor := attesttest.NewSNPVendor("Milan", now)
	for name, chip := range map[string]*attesttest.SNPChip{
		"vcek": vendor.Chip(attest.SNPTCB{SNP: 1}), "vlek": vendor.CloudChip(attest.SNPTCB{SNP: 1}, "cloud"),
	} {
		t.Run(name, func(t *testing.T) {
			endorsed := chip.Endorsements()
			ask, ark, err := kds.ParseProductCertChain(endorsed["ask_ark"])
			if err != nil {
				t.Fatal(err)
			}
			table := abi.CertsFromProto(&spb.CertificateChain{VcekCert: endorsed["vcek"], VlekCert: endorsed["vlek"], AskCert: ask, ArkCert: ark}).Marshal()
			guest := chip.Attester(attesttest.MeasureSNP("guest"))
			device := driver(provider, table, func(in []byte) ([]byte, error) {
				evidence, err := guest.Attest(context.Background(), attest.ReportData(in))
				return evidence.Raw, err
			})
			evidence, err := (&Attester{device: device}).Attest(context.Background(), attest.ReportData{1})
			if err != nil {
				t.Fatal(err)
			}
			if len(evidence.Endorsed) != 2 {
				t.Errorf("got %d endorsements, want %s and ask_ark", len(evidence.Endorsed), name)
			}
			all := evidence.WithEndorsements(attest.Endorsements{"crl": endorsed["crl"]}).Endorsed
			rules := vendor.Rules()
			rules.SNP.HiddenChips = name == "vlek"
			if _, err := new(reportAppraiser).Appraise(evidence.Raw, all, rules, now); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAttesterFaults(t *testing.T) {
	full := func([]byte) ([]byte, error) { return make([]byte, 1184), nil }
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	tests := []struct {
		name   string
		ctx    context.Context
		device configfsi.Client
		want   error
	}{
		{"another TEE", context.Background(), driver("tdx_guest", nil, full), wire.NotThisDevice},
		{"a driver that fails", context.Background(), driver(provider, nil, func([]byte) ([]byte, error) { return nil, fs.ErrNotExist }), wire.NotThisDevice},
		{"short report", context.Background(), driver(provider, nil, func([]byte) ([]byte, error) { return make([]byte, 1183), nil }), wire.Malformed},
		{"broken certificate table", context.Background(), driver(provider, []byte("table"), full), wire.Malformed},
		{"cancelled", cancelled, driver(provider, nil, full), context.Canceled},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := (&Attester{device: tt.device}).Attest(tt.ctx, attest.ReportData{1})
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
