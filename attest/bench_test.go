package attest_test

import (
	"encoding/json"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/bench"
)

// BenchmarkCollection compares parsing a quote with Intel's documents (which includes encoding it
// again for comparison) with package json finding the members alone, with package json joining
// them alone, and with the whole appraisal.
func BenchmarkCollection(b *testing.B) {
	vendor := attesttest.NewDCAPVendor(someTime)
	e, err := vendor.Chip(vendor.TCB).Attester(attesttest.MeasureTDX("guest")).Attest(b.Context(), someData)
	if err != nil {
		b.Fatal(err)
	}
	e = e.WithEndorsements(vendor.Endorsements(attest.TDX))
	text, err := e.MarshalJSON()
	if err != nil {
		b.Fatal(err)
	}
	appraiser, members := dcap.TDXPlatform().Appraiser(), map[string]json.RawMessage{}
	for _, err := range []error{
		new(attest.Evidence).UnmarshalJSON(text),
		json.Unmarshal(text, &members),
		func() error { _, err := appraiser.Appraise(e.Raw, e.Endorsed, vendor.Rules(), someTime); return err }(),
	} {
		if err != nil {
			b.Fatal(err)
		}
	}
	bench.Compare(b,
		bench.Contender{Name: "read", Cost: bench.Repeat(200, func() { _ = new(attest.Evidence).UnmarshalJSON(text) })},
		bench.Contender{Name: "json-members", Cost: bench.Repeat(200, func() { _ = json.Unmarshal(text, new(map[string]json.RawMessage)) })},
		bench.Contender{Name: "json-join", Cost: bench.Repeat(200, func() { _, _ = json.Marshal(members) })},
		bench.Contender{Name: "appraise", Cost: bench.Repeat(200, func() { _, _ = appraiser.Appraise(e.Raw, e.Endorsed, vendor.Rules(), someTime) })},
	)
}
