package snp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/vectortest"
	"github.com/google/go-sev-guest/abi"
)

// FuzzReport demands that what parses encodes to the same bytes, and that all
// else has a reason.
func FuzzReport(f *testing.F) {
	chip := attesttest.NewSNPVendor("Milan", now).Chip(attest.SNPTCB{SNP: 1})
	evidence, err := chip.Attester(attesttest.MeasureSNP("guest")).Attest(f.Context(), attest.ReportData{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(evidence.Raw)
	f.Add(evidence.Raw[:100])
	for _, raw := range vectortest.Seeds(f, "sev-snp", 16<<10) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parse(raw)
		var refusal *attest.Refusal
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("refused without a reason: %v", err)
		}
		if err != nil {
			return
		}
		policy := r.Policy
		r.Report.Policy &= knownPolicy // what the library writes; the rest stands where it was read
		again, err := abi.ReportToAbiBytes(r.Report)
		if err == nil {
			binary.LittleEndian.PutUint64(again[policyAt:], policy)
		}
		if err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("encoded again: %v\n got %x\nwant %x", err, again, raw)
		}
	})
}

// FuzzChain feeds certificates and lists that AMD did not make.
func FuzzChain(f *testing.F) {
	good := attesttest.NewSNPVendor("Turin", now).Chip(attest.SNPTCB{SNP: 1}).Endorsements()
	f.Add(good["vcek"], good["ask_ark"], good["crl"])
	f.Fuzz(func(t *testing.T, leaf, askARK, crl []byte) {
		c, err := bundle{kind: abi.VcekReportSigner, leaf: leaf, askARK: askARK, crl: crl}.check()
		var refusal *attest.Refusal
		if err != nil && !errors.As(err, &refusal) {
			t.Fatalf("refused without a reason: %v", err)
		}
		if err == nil && (c.key == nil || len(c.times) < 3) {
			t.Fatalf("accepted without a key or times: %+v", c)
		}
	})
}
