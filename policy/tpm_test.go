package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/tpm/tpmrules"
	"github.com/cohort-tee/cohort/internal/wire"
)

// tpmPolicy has a task on the TPM. PCR n holds the digits n1 throughout; 11 to 14
// byte; 11 to 13 were never extended.
func tpmPolicy(edits ...string) string {
	var boot []string
	for _, name := range tpmrules.Rules.RegisterNames()[:14] {
		number := strings.TrimPrefix(name, "pcr")
		value := strings.Repeat("0", 64)
		if len(number) == 1 {
			value = strings.Repeat(number+"1", 32)
		}
		boot = append(boot, fmt.Sprintf("%s = \"sha256:%s\"", number, value))
	}
	digest := func(s string) string { return wire.Sum([]byte(s)).String() }
	text := iron[:strings.Index(iron, "[platform.snp]")]
	text = spell(text)
	text += fmt.Sprintf("[platform.tpm]\nroots = [%q]\ncut_chips = [%q]\n", digest("root"), digest("chip"))
	text += fmt.Sprintf("[authority]\nroot = %q\nmachines = \"any\"\nreference = [ { platform = \"tpm\", boot = { BOOT }, program = %q } ]\n", digest("authority"), digest("agent"))
	text += fmt.Sprintf("[task.keys]\nkey_mode = \"unit\"\nnames = [\"keys.clinic.example\"]\n[task.keys.release.1]\nreference = [ { platform = \"tpm\", boot = { BOOT }, agent = %q, program = %q, args = [\"-v\"] } ]\n", digest("agent"), digest("keys"))
	text = strings.ReplaceAll(text, "BOOT", strings.Join(boot, ", "))
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			panic("no " + edits[i])
		}
		text = strings.ReplaceAll(text, edits[i], edits[i+1])
	}
	return text
}

func TestTPM(t *testing.T) {
	doc, err := Parse([]byte(tpmPolicy()))
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
	doc, err = Parse([]byte(tpmPolicy(`1 = "sha256:`+strings.Repeat("11", 32)+`", `, "", `, program`, `, any = ["pcr1"], program`)))
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
			_, err := Parse([]byte(tpmPolicy(row.old, row.new)))
			faults, ok := err.(Faults)
			if !ok || faults[0].Path != row.path || faults[0].Rule != row.rule {
				t.Errorf("got %v, want %s: %s", err, row.path, row.rule)
			}
		})
	}
}

// TestTPMDiff: what opens a register loosens, what cuts a chip off tightens.
func TestTPMDiff(t *testing.T) {
	parse := func(text string) *Document {
		d, err := Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	old := parse(tpmPolicy())
	open := parse(tpmPolicy(`1 = "sha256:`+strings.Repeat("11", 32)+`", `, "", `, program`, `, any = ["pcr1"], program`))
	if !Loosens(old, open) {
		t.Error("an open register does not loosen")
	}
	chip := fmt.Sprintf("cut_chips = [%q]\n", wire.Sum([]byte("chip")))
	uncut := parse(tpmPolicy(chip, ""))
	if Loosens(uncut, old) || !Loosens(old, uncut) {
		t.Error("cut_chips: cutting off loosens, or the reverse does not")
	}
}
