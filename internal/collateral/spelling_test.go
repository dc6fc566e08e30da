package collateral

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/platforms"
)

// TestSpellingOfCertificates: what a quote needs is found whatever white space
// stands around its certificates, as appraisal reads them.
func TestSpellingOfCertificates(t *testing.T) {
	vendor := attesttest.NewDCAPVendor(noon)
	chip := vendor.Chip(vendor.TCB)
	c := New(Config{Documents: platforms.Supported().Documents, Sources: map[string]string{"intel": "https://intel.example", "intel-root": "https://root.example"}})
	items := func(text func([]byte) []byte, padding int) []item {
		vendor.Text = text
		e := evidence(t, chip.Attester(attesttest.MeasureTDX("guest")))
		e.Raw = append(e.Raw, make([]byte, padding)...)
		items := c.items(e)
		for i := range items {
			items[i].Expires = nil // functions do not compare
		}
		return items
	}
	replaced := func(by string) func([]byte) []byte {
		return func(text []byte) []byte { return bytes.ReplaceAll(text, []byte("\n"), []byte(by)) }
	}
	want := items(nil, 0)
	if len(want) != 4 {
		t.Fatalf("got %d documents, want 4", len(want))
	}
	for name, got := range map[string][]item{
		"zeros at the end": items(nil, 100), "CR LF": items(replaced("\r\n"), 0), "one line": items(replaced(""), 0),
	} {
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	if got := items(func(text []byte) []byte { return append(text, "more"...) }, 0); got != nil {
		t.Errorf("other text: got %v, want nothing, as appraisal refuses it", got)
	}
}
