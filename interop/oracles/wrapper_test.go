package oracles

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/veraison/cmw"
)

// Media types of members of a composite, and the composite of a TEE and two devices as
// package attest spells it (attest.TestCompositeText).
const (
	softType        = "application/vnd.cohort.soft-evidence"
	gpuType         = "application/vnd.cohort.nvidia-gpu-evidence"
	endorsementType = "application/vnd.cohort.endorsement"

	composed = `{"0.cert_chain":["` + endorsementType + `","AQ"],"0.evidence":["` + gpuType + `","Ag"],"1.evidence":["` + gpuType + `","Aw"],` +
		`"__cmwc_t":"urn:cohort:composite-evidence","evidence":["` + softType + `","AA"],"vcek":["` + endorsementType + `","AQ"]}`
)

// TestCompositeOfTheLibrary: an implementation of RFC 9999 writes the same bytes, and
// reads them.
func TestCompositeOfTheLibrary(t *testing.T) {
	collection, err := cmw.NewCollection("urn:cohort:composite-evidence")
	if err != nil {
		t.Fatal(err)
	}
	for key, record := range map[string][2]string{
		"evidence": {softType, "\x00"}, "vcek": {endorsementType, "\x01"},
		"0.evidence": {gpuType, "\x02"}, "0.cert_chain": {endorsementType, "\x01"}, "1.evidence": {gpuType, "\x03"},
	} {
		member, err := cmw.NewMonad(record[0], []byte(record[1]))
		if err != nil {
			t.Fatal(err)
		}
		if err := collection.AddCollectionItem(key, member); err != nil {
			t.Fatal(err)
		}
	}
	text, err := collection.MarshalJSON()
	if err != nil || string(text) != composed {
		t.Errorf("got %s, %v, want %s", text, err, composed)
	}
	if err := new(cmw.CMW).UnmarshalJSON([]byte(composed)); err != nil {
		t.Error(err)
	}
}

// TestEvidenceWrapperOfTheLibrary: what this package writes by itself is what
// an implementation of RFC 9999 writes.
func TestEvidenceWrapperOfTheLibrary(t *testing.T) {
	for n := range 67 {
		raw := bytes.Repeat([]byte{0xfb}, n+1)
		record, err := cmw.NewMonad("application/vnd.cohort.tdx-evidence", raw)
		if err != nil {
			t.Fatal(err)
		}
		want, err := record.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(attest.Evidence{Platform: attest.TDX, Raw: raw})
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %s, %v, want %s", n+1, got, err, want)
		}
	}
}
