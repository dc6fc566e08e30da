package policyfile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

func TestTPM(t *testing.T) {
	doc, err := Parse([]byte(policytest.TPMPolicy()))
	if err != nil {
		t.Fatal(err)
	}
	rules := doc.Platforms[attest.TPM]
	if len(rules.TPM.Launches) != 2 || len(rules.TPM.CutChips) != 1 {
		t.Errorf("got %d launches and %d cut chips, want those of authority and task, and 1", len(rules.TPM.Launches), len(rules.TPM.CutChips))
	}
	ref := doc.Tasks["keys"].Releases["1"].References[0]
	if got := ref.Registers[9]; got.Name != "pcr9" || fmt.Sprintf("%x", got.Value) != strings.Repeat("91", 32) {
		t.Errorf("got %s = %x", got.Name, got.Value)
	}
	doc, err = Parse([]byte(policytest.TPMPolicy(`1 = "sha256:`+strings.Repeat("11", 32)+`", `, "", `, program`, `, any = ["pcr1"], program`)))
	if err != nil {
		t.Fatal(err)
	}
	if got := doc.Authority.References[0].Registers[1]; !got.Any {
		t.Errorf("got %+v, want any", got)
	}
}

func TestTPMRefusals(t *testing.T) {
	for _, row := range []struct {
		name, old, new, path, rule string
	}{
		{"a PCR left open", `1 = "sha256:` + strings.Repeat("11", 32) + `", `, "", "authority.reference[0].boot.1", "required key"},
		{"a PCR that is not quoted", `, 3 = "sha256:`, `, 10 = "sha256:` + strings.Repeat("11", 32) + `", 3 = "sha256:`, "authority.reference[0].boot.10", "unknown key"},
		{"a PCR and any", ", program", `, any = ["pcr1"], program`, "authority.reference[0].boot.1", "key"},
		{"a value of another bank", `11 = "sha256:`, `11 = "sha384:`, "authority.reference[0].boot.11", "value"},
		{"an unknown key", ", program", ", kernel = 1, program", "authority.reference[0].kernel", "unknown key"},
		{"an unknown rule", "cut_chips", "cut_chip", "platform.tpm.cut_chip", "unknown key"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := Parse([]byte(policytest.TPMPolicy(row.old, row.new)))
			faults, ok := err.(policytoml.Faults)
			if !ok || faults[0].Path != row.path || faults[0].Rule != row.rule {
				t.Errorf("got %v, want %s: %s", err, row.path, row.rule)
			}
		})
	}
}

// TestTPMDiff: opening a register loosens, cutting off a chip tightens.
func TestTPMDiff(t *testing.T) {
	parse := func(text string) *Document {
		d, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	old := parse(policytest.TPMPolicy())
	open := parse(policytest.TPMPolicy(`1 = "sha256:`+strings.Repeat("11", 32)+`", `, "", `, program`, `, any = ["pcr1"], program`))
	if !Loosens(old, open) {
		t.Error("an open register does not loosen")
	}
	chip := fmt.Sprintf("cut_chips = [%q]\n", wire.Sum([]byte("chip")))
	uncut := parse(policytest.TPMPolicy(chip, ""))
	if Loosens(uncut, old) || !Loosens(old, uncut) {
		t.Error("cut_chips: cutting off loosens, or the reverse does not")
	}
}
