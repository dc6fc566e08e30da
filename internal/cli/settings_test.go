package cli

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/cli/clitest"
	"github.com/cohort-tee/cohort/internal/cli/policycmd"
)

// TestPolicyCheckShowsSettings: `policy check` prints what is demanded of hosts,
// the demands that no file wrote included, and which cut-offs and floors are void.
func TestPolicyCheckShowsSettings(t *testing.T) {
	doc := clitest.Parsed(t, "chips = \"any\"", "chips = \"any\"\nmigration = true\ncut_chips = [\""+strings.Repeat("1", 32)+"\"]\nattributes = { PERFMON = false, TPA = \"any\" }")
	got := run(t, nil, "policy", "check", clitest.Write(t, "policy.toml", string(doc.Source())))
	for _, want := range []string{
		"demands attributes.SEPT_VE_DISABLE set, attributes.PERFMON clear, xfam.X87 set, xfam.SSE set\n",
		"warning   platform.tdx.cut_chips: void ",
		"warning   platform.tdx.min_evaluation: none",
	} {
		if got.exit != 0 || !strings.Contains(got.out, want) {
			t.Errorf("exit %d, got no %q in\n%s%s", got.exit, want, got.out, got.talk)
		}
	}
	if v := policycmd.Describe(doc); len(v.Warnings) != 2 || slices.Contains(v.Platforms[0].Bits, "attributes.TPA clear") {
		t.Errorf("got warnings %q, demands %q", v.Warnings, v.Platforms[0].Bits)
	}
}

// TestEvidenceShowsSettings: `evidence inspect` names the bits that hosts and
// launchers set.
func TestEvidenceShowsSettings(t *testing.T) {
	at := time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
	snp := attesttest.NewSNPVendor("Turin", at).Chip(attest.SNPTCB{SNP: 1}).Attester(attesttest.MeasureSNP("guest"))
	snp.Edit = func(report []byte) { report[0], report[0x200] = 5, 3 }
	intel := attesttest.NewDCAPVendor(at)
	tdx := intel.Chip(intel.TCB).Attester(attesttest.MeasureTDX("guest"))
	tdx.Version, tdx.Type = 5, 3
	for name, row := range map[string]struct {
		device attest.Attester
		want   []string
	}{
		"snp": {snp, []string{"platform_bits", "[ECC_EN ALIAS_CHECK_COMPLETE]", "policy_bits", "policy_abi", "current_mitigations", "0x3"}},
		"tdx": {tdx, []string{"td_attribute_bits", "[SEPT_VE_DISABLE]", "xfam_bits", "[X87 SSE AVX AVX512_OPMASK", "mrservicetd", "mrowner", "mrownerconfig"}},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := row.device.Attest(t.Context(), attest.ReportData{1})
			if err != nil {
				t.Fatal(err)
			}
			got := run(t, nil, "evidence", "inspect", clitest.Write(t, "evidence", string(e.Raw)))
			for _, want := range row.want {
				if got.exit != 0 || !strings.Contains(got.out, want) {
					t.Errorf("exit %d, got no %q in\n%s%s", got.exit, want, got.out, got.talk)
				}
			}
		})
	}
}
