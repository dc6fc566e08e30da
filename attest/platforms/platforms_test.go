package platforms

import (
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/internal/wire"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// TestValues: each platform's value is complete, and its name occurs once.
func TestValues(t *testing.T) {
	var names []attest.Platform
	for _, p := range Supported() {
		if slices.Contains(names, p.Platform) {
			t.Errorf("%s stands twice", p.Platform)
		}
		names = append(names, p.Platform)
		if p.Title == "" || p.Appraiser == nil || p.Appraiser().Platform() != p.Platform {
			t.Errorf("%s: no title, or the appraiser of another platform", p.Platform)
		}
		if (p.Documents == nil) != (len(p.Sources) == 0) || (p.MeasureImage == nil) != (p.Image == "") {
			t.Errorf("%s: documents without a source, or an image without a form", p.Platform)
		}
		e := attest.Evidence{Platform: p.Platform, Raw: []byte{1}}
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Supported().ReadEvidence(text); err != nil || got.Platform != p.Platform || !bytes.Equal(got.Raw, e.Raw) {
			t.Errorf("%s: got %v, %v of its wrapper", p.Platform, got, err)
		}
	}
}

// TestRead: evidence of each vendor is recognised only by its own platform.
func TestRead(t *testing.T) {
	snp := attesttest.NewSNPVendor("Milan", noon).Chip(attest.SNPTCB{SNP: 1}).Attester(attesttest.MeasureSNP("guest"))
	intel := attesttest.NewDCAPVendor(noon)
	for name, device := range map[attest.Platform]attest.Attester{
		attest.SNP:       snp,
		attest.TDX:       intel.Chip(intel.TCB).Attester(attesttest.MeasureTDX("td")),
		attest.SGX:       intel.Chip(intel.TCB).Attester(attesttest.MeasureSGX("enclave")),
		attest.Nitro:     attesttest.NewNitroVendor(noon).Attester(attesttest.MeasureNitro("image")),
		attest.NvidiaGPU: attesttest.NewNVIDIAVendor(noon).GPU("GH100"),
	} {
		e, err := device.Attest(t.Context(), attest.ReportData{1})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Supported().ReadEvidence(e.Raw); err != nil || got.Platform != name {
			t.Errorf("%s: got %q, %v", name, got.Platform, err)
		}
		for _, p := range Supported() {
			if p.Recognize == nil {
				continue
			}
			if _, recognized, _ := p.Recognize(e.Raw); recognized != (p.Platform == name) {
				t.Errorf("%s: recognised by %s: %v", name, p.Platform, recognized)
			}
		}
	}
	for _, content := range []string{"", "a report", "\x03"} {
		if _, err := Supported().ReadEvidence([]byte(content)); !errors.Is(err, wire.NoPlatform) {
			t.Errorf("%q: err = %v, want reason %q", content, err, wire.NoPlatform)
		}
	}
}

// vax is an appraiser of a platform that no other file knows.
type vax struct{}

func (vax) Platform() attest.Platform   { return "vax" }
func (v vax) Genuine() closed.Appraiser { return closed.VouchFor(v) }
func (vax) Appraise(raw []byte, _ attest.Endorsements, _ attest.Rules, _ time.Time) (attest.Claims, error) {
	return attest.Claims{Measurement: attest.Measurement{Platform: "vax"}, ReportData: raw}, nil
}

// TestNewPlatform: a verifier of a table with a new platform appraises that platform's evidence.
// The test of the same name in policyfile covers the rest of a new platform.
func TestNewPlatform(t *testing.T) {
	table := append(Supported(), attest.PlatformInfo{
		PolicyRules: attest.PolicyRules{Platform: "vax"}, Title: "VAX", Appraiser: func() attest.Appraiser { return vax{} },
	})
	data := attest.ReportData{1}
	q := attest.Question{
		Evidence: attest.Evidence{Platform: "vax", Raw: data[:]}, ReportData: data, At: noon,
		Rules: map[attest.Platform]attest.Rules{"vax": {}},
	}
	if r, err := table.Verifier().Appraise(q); err != nil || r.Measurement().Platform != "vax" {
		t.Errorf("got %v, %v", r.Measurement(), err)
	}
	if _, err := Supported().Verifier().Appraise(q); !errors.Is(err, wire.NoPlatform) {
		t.Errorf("without it: err = %v, want reason %q", err, wire.NoPlatform)
	}
}
