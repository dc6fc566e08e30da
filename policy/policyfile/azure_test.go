package policyfile

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// azurePolicy returns the TPM tests' policy with its task on Azure: PCR 4 has a value, all other
// PCRs are open.
func azurePolicy(edits ...string) string {
	text := policytest.TPMPolicy()
	var open []string
	for i := range 24 {
		if i != 4 {
			open = append(open, fmt.Sprintf("%q", fmt.Sprint("pcr", i)))
		}
	}
	task := fmt.Sprintf("[task.keys]\nkey_mode = \"unit\"\nnames = [\"keys.clinic.example\"]\n[task.keys.release.1]\nreference = [ { platform = \"azure-snp\", "+
		"measurement = \"sha384:%s\", host-data = %q, boot = { 4 = \"sha256:%s\" }, any = [%s] } ]\n",
		strings.Repeat("6a", 48), strings.Repeat("0", 64), strings.Repeat("41", 32), strings.Join(open, ", "))
	rules := fmt.Sprintf("[platform.azure-snp]\nroots = [\"sha256:%s\"]\nchips = \"any\"\nid_keys = \"any\"\n[platform.azure-snp.generation.Milan]\n"+
		"committed = { bootloader = 4, tee = 0, snp = 24, microcode = 219 }\n", strings.Repeat("9f", 32))
	text = text[:strings.Index(text, "[task.keys]")] + rules + task
	for i := 0; i < len(edits); i += 2 {
		text = strings.ReplaceAll(text, edits[i], edits[i+1])
	}
	return text
}

func TestAzure(t *testing.T) {
	doc, err := Parse([]byte(azurePolicy()))
	if err != nil {
		t.Fatal(err)
	}
	if floor := doc.Platforms[attest.AzureSNP].SNP.Generations["Milan"].Committed; floor.Microcode != 219 {
		t.Errorf("got floor %+v, want the one given", floor)
	}
	registers := doc.Tasks["keys"].Releases["1"].References[0].Registers
	if got := registers[2+4]; got.Any || fmt.Sprintf("%x", got.Value) != strings.Repeat("41", 32) {
		t.Errorf("got %+v, want PCR 4 as given", got)
	}
	if got := registers[2+23]; !got.Any || got.Name != "pcr23" {
		t.Errorf("got %+v, want PCR 23 open", got)
	}
}

func TestAzureRefusals(t *testing.T) {
	const ref = "task.keys.release.1.reference[0]."
	for _, row := range []struct {
		name, old, new, path, rule string
	}{
		{"a PCR left out", `"pcr10", `, "", ref + "boot.10", "required key"},
		{"a PCR and any", `"pcr0", `, `"pcr0", "pcr4", `, ref + "boot.4", "key"},
		{"any paravisor", `any = [`, `any = ["measurement", `, ref + "any[0]", "value"},
		{"a PCR that no PC has", "{ 4 =", "{ 24 = 1, 4 =", ref + "boot.24", "unknown key"},
		{"a program of a TPM", "host-data", "program = 1, host-data", ref + "program", "unknown key"},
		{"no generation", "[platform.azure-snp.generation.Milan]\n", "[platform.azure-snp.generation.Rome]\n", "platform.azure-snp.generation.Rome", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := Parse([]byte(azurePolicy(row.old, row.new)))
			faults, ok := err.(policytoml.Faults)
			if !ok || faults[0].Path != row.path || row.rule != "" && faults[0].Rule != row.rule {
				t.Errorf("got %v, want %s: %s", err, row.path, row.rule)
			}
		})
	}
}
