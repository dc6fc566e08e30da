package policyfile

import (
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/policy/policytest"
)

// TestWarnings: each cut-off or floor without effect is named in a warning, and the smallest
// change that gives it effect removes the warning.
func TestWarnings(t *testing.T) {
	careful := []string{
		`crl = "if-present"`, `crl = "required"`, "migration = true\nprov", "migration = false\nprov",
		"debug = true\n", "", "chips = [\"00000000000000000000000000000001\"]\n", "chips = [\"00000000000000000000000000000001\"]\nmin_evaluation = 17\n",
		"migration = true\n\n", "migration = false\n\n", `max_age = "5m"`, "max_age = \"5m\"\ncrl = \"required\" # AWS",
	}
	hidden := []string{"hidden_chips = false", "hidden_chips = true", `chips = ["C1", "c3c3c3c3c3c3c3c3"]`, `chips = "any"`}
	tests := []struct {
		name  string
		edits []string // applied to a policy without warnings
		want  []string
	}{
		{"nothing", nil, nil},
		{"hidden chips beside a cut-off", hidden, []string{"platform.snp.hidden_chips"}},
		{"hidden chips alone", append(slices.Clone(hidden), "cut_chips = [\"C2\"]\n", ""), []string{"platform.snp.hidden_chips"}},
		{"a chip that a guest may move to", []string{"migration = false\nprov", "migration = true\nprov"}, []string{"platform.snp.cut_chips"}},
		{"a chip that a TD may move to", []string{"migration = false\n\n", "migration = true\n\n"}, []string{"platform.tdx.cut_chips"}},
		{"a floor of zeros", []string{milan, "committed = { bootloader = 0, tee = 0, snp = 0, microcode = 0 }"}, []string{"platform.snp.generation.Milan.committed"}},
		{"lists that may be missing", []string{`crl = "required"`, `crl = "if-present"`}, []string{"platform.snp.crl"}},
		{"lists of AWS's that may be missing", []string{`crl = "required" # AWS`, ""}, []string{"platform.nitro.crl"}},
		{"debug", []string{"crl = \"required\"\nchips = \"any\"", "debug = true\ncrl = \"required\"\nchips = \"any\""}, []string{"platform.tdx.debug"}},
		{"levels of any age", []string{"min_tcb_date = 2025-05-14T00:00:00Z\n", ""}, []string{"platform.tdx.statuses"}},
		{"statements of any age", []string{"min_evaluation = 17\nmin_tcb", "min_tcb"}, []string{"platform.tdx.min_evaluation"}},
		{"every build of a signer", []string{"min_isvsvn = 4\n", ""}, []string{"platform.sgx.min_isvsvn"}},
		{"no release that is not retired", []string{"[task.keys.release.\"1\"]\n", "[task.keys.release.\"1\"]\nretired = true\n"}, []string{"task.keys.release"}},
		{"one build of a signer", []string{"min_isvsvn = 4\n", "", `any = ["mrenclave"], `, `mrenclave = "sha256:R2", `}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, w := range mustParse(t, policytest.IronText(t, append(slices.Clone(careful), tt.edits...)...)).Warnings() {
				got = append(got, w.Path)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got warnings %q, want %q", got, tt.want)
			}
		})
	}
}
