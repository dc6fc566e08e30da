package oracles

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
	tdxabi "github.com/google/go-tdx-guest/abi"
	tdx "github.com/google/go-tdx-guest/proto/tdx"
	tdxverify "github.com/google/go-tdx-guest/verify"
)

var dcapTime = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// TestDCAPQuotesAreQuotes has another's verifier read and verify the quotes, so
// that vendor and appraiser do not share one error.
func TestDCAPQuotesAreQuotes(t *testing.T) {
	vendor := attesttest.NewDCAPVendor(dcapTime)
	measurement := attesttest.MeasureTDX("guest")
	device := vendor.Chip(vendor.TCB).Attester(measurement)
	data := attest.BindReportData(wire.LabelIssue, []byte("nonce"))
	evidence, err := device.Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	read, err := tdxabi.QuoteToProto(evidence.Raw)
	if err != nil {
		t.Fatal(err)
	}
	body := read.(*tdx.QuoteV4).TdQuoteBody
	for i, got := range append([][]byte{body.MrTd, body.MrConfigId}, body.Rtmrs...) {
		if want := measurement.Registers[i]; !bytes.Equal(got, want.Value) {
			t.Errorf("%s = %x, want %x", want.Name, got, want.Value)
		}
	}
	if !bytes.Equal(body.ReportData, data[:]) {
		t.Errorf("report data = %x, want %x", body.ReportData, data)
	}
	roots := x509.NewCertPool()
	for rest := vendor.Endorsements(attest.TDX)["tcb_info_chain"]; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil && cert.IsCA {
			roots.AddCert(cert)
		}
	}
	options := &tdxverify.Options{Now: &tdxverify.TimeSet{PckCertChain: dcapTime}, TrustedRoots: roots}
	if err := tdxverify.RawTdxQuote(evidence.Raw, options); err != nil {
		t.Errorf("another's verifier: %v", err)
	}
	evidence.Raw[600] ^= 1
	if err := tdxverify.RawTdxQuote(evidence.Raw, options); err == nil {
		t.Error("another's verifier accepts an altered quote")
	}
}
