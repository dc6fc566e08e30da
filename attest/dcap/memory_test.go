package dcap

import (
	"bytes"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
)

// TestMemoryOfSpellings: the text of certificates can be written in any number of ways. All of
// them share one entry of the cache.
func TestMemoryOfSpellings(t *testing.T) {
	vendor := attesttest.NewDCAPVendor(now)
	evidence, err := vendor.Chip(vendor.TCB).Attester(attesttest.MeasureTDX("guest")).Attest(t.Context(), attest.ReportData{1})
	if err != nil {
		t.Fatal(err)
	}
	q, err := parseQuote(evidence.Raw, attest.TDX)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[known]bool{}
	endorsed := vendor.Endorsements(attest.TDX)
	for i := range 3 {
		spelled := bytes.ReplaceAll(bytes.TrimRight(q.chain, "\x00"), []byte("\n"), bytes.Repeat([]byte("\n"), i+1))
		for _, role := range []string{roleTCBInfoChain, roleQEIdentityChain} {
			endorsed[role] = append(bytes.Clone(endorsed[role]), '\n')
		}
		b := bundle{attest.TDX, spelled, endorsed}
		if _, err := b.verify(); err != nil {
			t.Fatal(err)
		}
		seen[b.known()] = true
	}
	if len(seen) != 1 {
		t.Errorf("got %d platforms to remember, want 1", len(seen))
	}
}
