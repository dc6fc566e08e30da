package evidencecmd

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// testKey is an owner's public key, whose private half does not exist.
const testKey = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIcJxutnUOY/2q1fSE+oEHWrpn2a530PsH2sXJH6I0lL"

// TestReferenceLines: what `measure` prints can be pasted, and is then the very
// measurement.
func TestReferenceLines(t *testing.T) {
	platforms := "[platform.snp]\nroots = [%[1]q]\nchips = \"any\"\nid_keys = [\"sha384:" + strings.Repeat("0", 96) + "\"]\n" +
		"[platform.snp.generation.Milan]\ncommitted = { bootloader = 3, tee = 0, snp = 22, microcode = 115 }\n" +
		"[platform.azure-snp]\nroots = [%[1]q]\nchips = \"any\"\nid_keys = \"any\"\n" +
		"[platform.azure-snp.generation.Milan]\ncommitted = { bootloader = 3, tee = 0, snp = 22, microcode = 115 }\n" +
		"[platform.tdx]\nroots = [%[1]q]\nchips = \"any\"\n[platform.sgx]\nroots = [%[1]q]\nchips = \"any\"\n[platform.nitro]\nroots = [%[1]q]\nmax_age = \"5m\"\n"
	azure := attesttest.MeasureSNP("a")
	azure.Platform = attest.AzureSNP
	for i := range 24 {
		digest := wire.Sum([]byte{byte(i)})
		azure.Registers = append(azure.Registers, attest.Register{Name: fmt.Sprint("pcr", i), Value: digest[:]})
	}
	for _, m := range []attest.Measurement{
		attesttest.MeasureSNP("a"), azure, attesttest.MeasureTDX("a"), attesttest.MeasureSGX("a"), attesttest.MeasureNitro("a"),
	} {
		text := fmt.Sprintf("schema = %q\ntrust_domain = \"a.example\"\nsequence = 1\nprevious = \"\"\ncreated = 2026-11-22T09:00:00Z\n", policyfile.Schema) +
			"[owners]\nquorum = 1\napprove_within = \"1h\"\ndelay = \"1h\"\nkeys = [ { name = \"ana\", ssh = \"" + testKey + "\" } ]\n" +
			fmt.Sprintf(platforms, "sha256:"+strings.Repeat("1", 64)) +
			fmt.Sprintf("[authority]\nroot = \"sha256:%s\"\nmachines = \"any\"\nreference = [ %s ]\n", strings.Repeat("2", 64), referenceLine(m))
		doc, err := policyfile.Parse([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", m.Platform, err)
			continue
		}
		if err := attest.Match(doc.Authority.References[0], m); err != nil {
			t.Errorf("%s: %v", m.Platform, err)
		}
	}
}
