package policyfile

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/policy/policytest"
)

// diffRows has every kind of change: first those that tighten, then for every key of the file at
// least one that loosens.
var diffRows = []struct {
	name     string
	from, to []string // edits of the good policy
	want     []string
}{
	{"a comment", nil, []string{"# Policy of a clinic.", "# Reviewed."}, nil},
	{"order of a list", nil, []string{`"scoring.clinic.example", "score.clinic.example"`, `"score.clinic.example", "scoring.clinic.example"`}, nil},
	{"another spelling", nil, []string{`calls = ["keys"]`, `calls = ['keys',]`}, nil},

	{"release removed", nil, []string{"[task.scoring.release.\"2026.10\"]\n" + `reference = [ { platform = "soft", agent = "@agent-1", program = "sha256:5555555555555555555555555555555555555555555555555555555555555555" } ]`, "", "continues = \"2026.10\"\n", ""},
		[]string{`- task.scoring.release."2026.10" = { reference = [{ agent = "@agent-1", platform = "soft", program = "sha256:` + strings.Repeat("5", 64) + `" }] } (tightens)`,
			`- task.scoring.release."2026.11".continues = "2026.10" (tightens)`}},
	{"reference value removed", nil, []string{`  { platform = "soft", agent = "@agent-1", program = "sha256:` + strings.Repeat("7", 64) + "\" },\n", ""},
		[]string{`- task.scoring.release."2026.11".reference = { agent = "@agent-1", platform = "soft", program = "sha256:` + strings.Repeat("7", 64) + `" } (tightens)`}},
	{"root removed", []string{`roots = ["sha256:` + strings.Repeat("1", 64) + `"]`, `roots = ["sha256:` + strings.Repeat("1", 64) + `", "sha256:` + strings.Repeat("a", 64) + `"]`}, nil,
		[]string{`- platform.soft.roots = "sha256:` + strings.Repeat("a", 64) + `" (tightens)`}},
	{"debug removed", nil, []string{"debug = true\n", ""}, []string{"- platform.soft.debug = true (tightens)"}},
	{"debug off", nil, []string{"debug = true\n", "debug = false\n"}, []string{"~ platform.soft.debug = false, was true (tightens)"}},
	{"dynamic off", nil, []string{"dynamic = true", "dynamic = false"}, []string{`~ task.scoring.release."2026.11".dynamic = false, was true (tightens)`}},
	{"oneoff removed", nil, []string{"oneoff = true\n", ""}, []string{`- task.scoring.release."2026.11".oneoff = true (tightens)`}},
	{"continues removed", nil, []string{"continues = \"2026.10\"\n", ""}, []string{`- task.scoring.release."2026.11".continues = "2026.10" (tightens)`}},
	{"call removed", nil, []string{`calls = ["keys"]`, `calls = []`}, []string{`- task.scoring.calls = "keys" (tightens)`}},
	{"calls removed", nil, []string{"calls = [\"keys\"]\n", ""}, []string{`- task.scoring.calls = "keys" (tightens)`}},
	{"name removed", nil, []string{`, "score.clinic.example"`, ""}, []string{`- task.scoring.names = "score.clinic.example" (tightens)`}},
	{"shorter life", nil, []string{`"30m"`, `"1790s"`}, []string{`~ task.scoring.lifetime = "1790s", was "30m" (tightens)`}},

	{"retired", nil, []string{"dynamic = true\n", "dynamic = true\nretired = true\n"}, []string{`+ task.scoring.release."2026.11".retired = true (tightens)`}},
	{"a unit cut off", nil, []string{"units = 50\n", "units = 50\ncut_units = [\"" + strings.Repeat("a", 32) + "\"]\n"}, []string{`+ task.scoring.cut_units = "` + strings.Repeat("a", 32) + `" (tightens)`}},
	{"shorter silence", silent("20m"), silent("10m"), []string{`~ max_silence = "10m", was "20m" (tightens)`}},

	{"no longer retired", []string{"dynamic = true\n", "dynamic = true\nretired = true\n"}, nil, []string{`- task.scoring.release."2026.11".retired = true (loosens)`}},
	{"retired no longer", []string{"dynamic = true\n", "dynamic = true\nretired = true\n"}, []string{"dynamic = true\n", "dynamic = true\nretired = false\n"}, []string{`~ task.scoring.release."2026.11".retired = false, was true (loosens)`}},
	{"longer silence", silent("10m"), silent("20m"), []string{`~ max_silence = "20m", was "10m" (loosens)`}},
	{"silence stated", nil, silent("10m"), []string{`+ max_silence = "10m" (loosens)`}},
	{"silence by each group", silent("10m"), nil, []string{`- max_silence = "10m" (loosens)`}},
	{"longer life", nil, []string{`"30m"`, `"1801s"`}, []string{`~ task.scoring.lifetime = "1801s", was "30m" (loosens)`}},
	{"life removed", nil, []string{"lifetime = \"30m\"\n", ""}, []string{`- task.scoring.lifetime = "30m" (loosens)`}},
	{"env added", nil, []string{"oneoff = true", "oneoff = true\n[task.scoring.release.\"2026.10\".env]\nTZ = \"UTC\""}, []string{`+ task.scoring.release."2026.10".env.TZ = "UTC" (loosens)`}},
	{"dynamic on", []string{"dynamic = true\n", ""}, nil, []string{`+ task.scoring.release."2026.11".dynamic = true (loosens)`}},
	{"debug on", []string{"debug = true\n", ""}, nil, []string{"+ platform.soft.debug = true (loosens)"}},
	{"root added", nil, []string{`roots = [`, `roots = ["sha256:` + strings.Repeat("a", 64) + `", `}, []string{`+ platform.soft.roots = "sha256:` + strings.Repeat("a", 64) + `" (loosens)`}},
	{"another program", nil, []string{strings.Repeat("4", 64), strings.Repeat("8", 64)}, []string{
		`- task.keys.release."1.4".reference = { any = ["agent", "args"], platform = "soft", program = "sha256:` + strings.Repeat("4", 64) + `" } (tightens)`,
		`+ task.keys.release."1.4".reference = { any = ["agent", "args"], platform = "soft", program = "sha256:` + strings.Repeat("8", 64) + `" } (loosens)`}},
	{"another argument", nil, []string{`"m.json"`, `"n.json"`}, []string{
		`- task.scoring.release."2026.11".reference = { agent = "@agent-1", args = ["--model", "m.json"], platform = "soft", program = "sha256:` + strings.Repeat("6", 64) + `" } (tightens)`,
		`+ task.scoring.release."2026.11".reference = { agent = "@agent-1", args = ["--model", "n.json"], platform = "soft", program = "sha256:` + strings.Repeat("6", 64) + `" } (loosens)`}},
	{"measured digest", nil, []string{strings.Repeat("2", 64), strings.Repeat("8", 64)}, []string{`~ measured.agent-1.sha256 = "` + strings.Repeat("8", 64) + `", was "` + strings.Repeat("2", 64) + `" (loosens)`}},
	{"authority root", nil, []string{strings.Repeat("3", 64), strings.Repeat("8", 64)}, []string{`~ authority.root = "sha256:` + strings.Repeat("8", 64) + `", was "sha256:` + strings.Repeat("3", 64) + `" (loosens)`}},
	{"machine added", nil, []string{`["chip:0123456789abcdef"]`, `["chip:0123456789abcdef", "chip:1111111111111111"]`}, []string{`+ authority.machines = "chip:1111111111111111" (loosens)`}},
	{"machine removed", []string{`["chip:0123456789abcdef"]`, `["chip:0123456789abcdef", "chip:1111111111111111"]`}, nil, []string{`- authority.machines = "chip:1111111111111111" (tightens)`}},
	{"every machine", nil, []string{`["chip:0123456789abcdef"]`, `"any"`}, []string{`~ authority.machines = "any", was ["chip:0123456789abcdef"] (loosens)`}},
	{"named machines", []string{`["chip:0123456789abcdef"]`, `"any"`}, nil, []string{`~ authority.machines = ["chip:0123456789abcdef"], was "any" (tightens)`}},
	{"name added", nil, []string{`["scoring.`, `["a.clinic.example", "scoring.`}, []string{`+ task.scoring.names = "a.clinic.example" (loosens)`}},
	{"call added", nil, []string{`calls = ["keys"]`, `calls = ["keys", "scoring"]`}, []string{`+ task.scoring.calls = "scoring" (loosens)`}},
	{"key mode", nil, []string{`"shared"`, `"unit"`}, []string{`~ task.scoring.key_mode = "unit", was "shared" (loosens)`}},
	{"fewer units", nil, []string{"units = 50", "units = 5"}, []string{"~ task.scoring.units = 5, was 50 (tightens)"}},
	{"more units", nil, []string{"units = 50", "units = 51"}, []string{"~ task.scoring.units = 51, was 50 (loosens)"}},
	{"any number of units", nil, []string{"units = 50\n", ""}, []string{"- task.scoring.units = 50 (loosens)"}},
	{"no longer any number of units", []string{"units = 50\n", ""}, nil, []string{"+ task.scoring.units = 50 (tightens)"}},
	{"env changed", nil, []string{`LANG = "C"`, `LANG = "D"`}, []string{`~ task.scoring.release."2026.11".env.LANG = "D", was "C" (loosens)`}},
	{"env removed", nil, []string{"env = { LANG = \"C\" }\n", ""}, []string{`- task.scoring.release."2026.11".env = { LANG = "C" } (loosens)`}},
	{"higher quorum", nil, []string{"quorum = 2", "quorum = 3"}, []string{"~ owners.quorum = 3, was 2 (loosens)"}},
	{"approve_within", nil, []string{`"168h"`, `"100h"`}, []string{`~ owners.approve_within = "100h", was "168h" (loosens)`}},
	{"longer delay", nil, []string{`delay = "1h"`, `delay = "2h"`}, []string{`~ owners.delay = "2h", was "1h" (loosens)`}},
	{"owner removed", nil, []string{"  { name = \"eva\", ssh = \"EVA\" },\n", ""}, []string{`- owners.keys = { name = "eva", ssh = "EVA" } (loosens)`}},
}

// silent returns edits that set max_silence.
func silent(d string) []string {
	return []string{"development  = true\n", "development  = true\nmax_silence = \"" + d + "\"\n"}
}

func TestDiff(t *testing.T) {
	h := policytest.NewHouse()
	eva := policytest.KeyLine(h.Owners["eva"].PublicKey())
	for _, row := range diffRows {
		t.Run(row.name, func(t *testing.T) {
			wantDiff(t, mustParse(t, h.Text(t, row.from...)), mustParse(t, h.Text(t, row.to...)), row.want, eva)
		})
	}
}

// wantDiff demands exactly these changes; EVA stands for eva's key.
func wantDiff(t *testing.T, old, next *Document, want []string, eva string) {
	t.Helper()
	var got []string
	for _, c := range Compare(old, next) {
		got = append(got, strings.ReplaceAll(c.String(), eva, "EVA"))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got changes\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if got, want := Loosens(old, next), strings.Contains(fmt.Sprint(want), "(loosens)"); got != want {
		t.Errorf("got loosens %v, want %v", got, want)
	}
}

// hardwareDiffRows are changes of the hardware policy. Each is one edit, with the changes that it
// makes and that undoing it makes.
var hardwareDiffRows = []struct {
	name       string
	edit       []string
	want, back []string
}{
	{"platform cut off", []string{"[platform.nitro]\nroots = [\"sha256:R3\"]\nmax_age = \"5m\"\n", "", "  { platform = \"nitro\", pcr0 = \"sha384:M1\", pcr1 = \"sha384:M2\", pcr2 = \"sha384:M3\", pcr8 = \"sha384:M0\" },\n", ""},
		[]string{`- platform.nitro = { max_age = "5m", roots = ["sha256:R3"] } (tightens)`,
			`- task.keys.release.1.reference = { pcr0 = "sha384:M1", pcr1 = "sha384:M2", pcr2 = "sha384:M3", pcr8 = "sha384:M0", platform = "nitro" } (tightens)`},
		[]string{`+ platform.nitro.max_age = "5m" (loosens)`, `+ platform.nitro.roots = "sha256:R3" (loosens)`,
			`+ task.keys.release.1.reference = { pcr0 = "sha384:M1", pcr1 = "sha384:M2", pcr2 = "sha384:M3", pcr8 = "sha384:M0", platform = "nitro" } (loosens)`}},
	{"generation cut off", []string{"[platform.snp.generation.Milan]\n" + milan + "\n", ""},
		[]string{`- platform.snp.generation.Milan = { committed = { bootloader = 3, microcode = 115, snp = 8, tee = 0 } } (tightens)`},
		// A new generation's floors loosen, because without it the generation is refused.
		[]string{`+ platform.snp.generation.Milan.committed.bootloader = 3 (loosens)`, `+ platform.snp.generation.Milan.committed.microcode = 115 (loosens)`,
			`+ platform.snp.generation.Milan.committed.snp = 8 (loosens)`, `+ platform.snp.generation.Milan.committed.tee = 0 (loosens)`}},
	{"chip cut off", []string{`cut_chips = ["C2"]`, `cut_chips = ["C2", "C3"]`},
		[]string{`+ platform.snp.cut_chips = "C3" (tightens)`}, []string{`- platform.snp.cut_chips = "C3" (loosens)`}},
	{"first chip cut off", []string{"max_age", "max_age", `chips = ["00000000000000000000000000000001"]`, "chips = [\"00000000000000000000000000000001\"]\ncut_chips = [\"00000000000000000000000000000002\"]"},
		[]string{`+ platform.sgx.cut_chips = "00000000000000000000000000000002" (tightens)`}, []string{`- platform.sgx.cut_chips = "00000000000000000000000000000002" (loosens)`}},
	{"model cut off", []string{`["90c06f000000"]`, `["90c06f000000", "00906ed50000"]`},
		[]string{`+ platform.tdx.cut_models = "00906ed50000" (tightens)`}, []string{`- platform.tdx.cut_models = "00906ed50000" (loosens)`}},
	{"accepted chip removed", []string{`, "c3c3c3c3c3c3c3c3"`, ""}, []string{`- platform.snp.chips = "c3c3c3c3c3c3c3c3" (tightens)`}, []string{`+ platform.snp.chips = "c3c3c3c3c3c3c3c3" (loosens)`}},
	{"chips named", []string{`chips = "any"`, `chips = ["00000000000000000000000000000002"]`},
		[]string{`~ platform.tdx.chips = ["00000000000000000000000000000002"], was "any" (tightens)`},
		[]string{`~ platform.tdx.chips = "any", was ["00000000000000000000000000000002"] (loosens)`}},
	{"id key removed", []string{`["sha384:K1"]`, "[]"}, []string{`- platform.snp.id_keys = "sha384:K1" (tightens)`}, []string{`+ platform.snp.id_keys = "sha384:K1" (loosens)`}},
	{"any id key", []string{`["sha384:K1"]`, `"any"`}, []string{`~ platform.snp.id_keys = "any", was ["sha384:K1"] (loosens)`}, []string{`~ platform.snp.id_keys = ["sha384:K1"], was "any" (tightens)`}},
	{"higher floor", []string{"snp = 8,", "snp = 22,"}, []string{`~ platform.snp.generation.Milan.committed.snp = 22, was 8 (tightens)`}, []string{`~ platform.snp.generation.Milan.committed.snp = 8, was 22 (loosens)`}},
	{"higher reported floor", []string{"snp = 9,", "snp = 10,"}, []string{`~ platform.snp.generation.Turin.reported.snp = 10, was 9 (tightens)`}, []string{`~ platform.snp.generation.Turin.reported.snp = 9, was 10 (loosens)`}},
	{"one floor up, one down", []string{"tee = 0, snp = 8,", "tee = 1, snp = 7,"},
		[]string{`~ platform.snp.generation.Milan.committed.snp = 7, was 8 (loosens)`, `~ platform.snp.generation.Milan.committed.tee = 1, was 0 (tightens)`},
		[]string{`~ platform.snp.generation.Milan.committed.snp = 8, was 7 (tightens)`, `~ platform.snp.generation.Milan.committed.tee = 0, was 1 (loosens)`}},
	{"launch floor removed", []string{"launch = { fmc = 11, bootloader = 12, tee = 13, snp = 14, microcode = 255 }\n", ""},
		[]string{`- platform.snp.generation.Turin.launch = { bootloader = 12, fmc = 11, microcode = 255, snp = 14, tee = 13 } (loosens)`},
		[]string{`+ platform.snp.generation.Turin.launch.bootloader = 12 (tightens)`, `+ platform.snp.generation.Turin.launch.fmc = 11 (tightens)`,
			`+ platform.snp.generation.Turin.launch.microcode = 255 (tightens)`, `+ platform.snp.generation.Turin.launch.snp = 14 (tightens)`, `+ platform.snp.generation.Turin.launch.tee = 13 (tightens)`}},
	{"reported floor added", []string{milan, milan + "\nreported = { bootloader = 3, tee = 0, snp = 8, microcode = 115 }"},
		[]string{`+ platform.snp.generation.Milan.reported.bootloader = 3 (tightens)`, `+ platform.snp.generation.Milan.reported.microcode = 115 (tightens)`,
			`+ platform.snp.generation.Milan.reported.snp = 8 (tightens)`, `+ platform.snp.generation.Milan.reported.tee = 0 (tightens)`},
		[]string{`- platform.snp.generation.Milan.reported = { bootloader = 3, microcode = 115, snp = 8, tee = 0 } (loosens)`}},
	{"smt off", []string{"smt = true", "smt = false"}, []string{`~ platform.snp.smt = false, was true (tightens)`}, []string{`~ platform.snp.smt = true, was false (loosens)`}},
	{"smt left out", []string{"smt = true\n", ""}, []string{`- platform.snp.smt = true (tightens)`}, []string{`+ platform.snp.smt = true (loosens)`}},
	{"migration off", []string{"migration = true\nprov", "migration = false\nprov"}, []string{`~ platform.snp.migration = false, was true (tightens)`}, []string{`~ platform.snp.migration = true, was false (loosens)`}},
	{"provisional firmware off", []string{"provisional_firmware = true\n", ""}, []string{`- platform.snp.provisional_firmware = true (tightens)`}, []string{`+ platform.snp.provisional_firmware = true (loosens)`}},
	{"lower vmpl", []string{"vmpl = 2", "vmpl = 1"}, []string{`~ platform.snp.vmpl = 1, was 2 (tightens)`}, []string{`~ platform.snp.vmpl = 2, was 1 (loosens)`}},
	{"vmpl left out", []string{"vmpl = 2\n", ""}, []string{`- platform.snp.vmpl = 2 (tightens)`}, []string{`+ platform.snp.vmpl = 2 (loosens)`}},
	{"crl required", []string{`"if-present"`, `"required"`}, []string{`~ platform.snp.crl = "required", was "if-present" (tightens)`}, []string{`~ platform.snp.crl = "if-present", was "required" (loosens)`}},
	{"crl left out", []string{"crl = \"if-present\"\n", ""}, []string{`- platform.snp.crl = "if-present" (tightens)`}, []string{`+ platform.snp.crl = "if-present" (loosens)`}},
	{"collateral checked later", []string{`"72h"`, `"48h"`}, []string{`~ platform.snp.checked_within = "48h", was "72h" (tightens)`}, []string{`~ platform.snp.checked_within = "72h", was "48h" (loosens)`}},
	{"collateral checked whenever", []string{"checked_within = \"72h\"\n", ""}, []string{`- platform.snp.checked_within = "72h" (loosens)`}, []string{`+ platform.snp.checked_within = "72h" (tightens)`}},
	{"status removed", []string{`, "OutOfDate"`, ""}, []string{`- platform.tdx.statuses = "OutOfDate" (tightens)`}, []string{`+ platform.tdx.statuses = "OutOfDate" (loosens)`}},
	{"advisory removed", []string{"advisories = [\"INTEL-SA-00615\"]\n", ""}, []string{`- platform.tdx.advisories = "INTEL-SA-00615" (tightens)`}, []string{`+ platform.tdx.advisories = "INTEL-SA-00615" (loosens)`}},
	{"later evaluation", []string{"min_evaluation = 17", "min_evaluation = 18"}, []string{`~ platform.tdx.min_evaluation = 18, was 17 (tightens)`}, []string{`~ platform.tdx.min_evaluation = 17, was 18 (loosens)`}},
	{"evaluation left out", []string{"min_evaluation = 17\n", ""}, []string{`- platform.tdx.min_evaluation = 17 (loosens)`}, []string{`+ platform.tdx.min_evaluation = 17 (tightens)`}},
	{"higher isvsvn", []string{"min_isvsvn = 4", "min_isvsvn = 10"}, []string{`~ platform.sgx.min_isvsvn = 10, was 4 (tightens)`}, []string{`~ platform.sgx.min_isvsvn = 4, was 10 (loosens)`}},
	{"chips hidden", []string{"hidden_chips = false", "hidden_chips = true", `chips = ["C1", "c3c3c3c3c3c3c3c3"]`, `chips = "any"`},
		[]string{`~ platform.snp.chips = "any", was ["C1", "c3c3c3c3c3c3c3c3"] (loosens)`, `~ platform.snp.hidden_chips = true, was false (loosens)`},
		[]string{`~ platform.snp.chips = ["C1", "c3c3c3c3c3c3c3c3"], was "any" (tightens)`, `~ platform.snp.hidden_chips = false, was true (tightens)`}},
	{"a demand on a bit dropped", []string{"ECC_EN = true, ", ""}, []string{`- platform.snp.platform_info.ECC_EN = true (loosens)`}, []string{`+ platform.snp.platform_info.ECC_EN = true (tightens)`}},
	{"a demand on a bit turned", []string{"SMT_EN = false", "SMT_EN = true"}, []string{`~ platform.snp.platform_info.SMT_EN = true, was false (loosens)`}, []string{`~ platform.snp.platform_info.SMT_EN = false, was true (loosens)`}},
	{"a demand by default", []string{`ALIAS_CHECK_COMPLETE = "any", `, ""}, []string{`- platform.snp.platform_info.ALIAS_CHECK_COMPLETE = "any" (tightens)`}, []string{`+ platform.snp.platform_info.ALIAS_CHECK_COMPLETE = "any" (loosens)`}},
	{"a demand by default, spelled out", []string{`CXL_ALLOW = "any"`, `CXL_ALLOW = false`}, []string{`~ platform.snp.guest_policy.CXL_ALLOW = false, was "any" (tightens)`}, []string{`~ platform.snp.guest_policy.CXL_ALLOW = "any", was false (loosens)`}},
	{"no demands on the platform", []string{`platform_info = { ALIAS_CHECK_COMPLETE = "any", ECC_EN = true, SMT_EN = false }` + "\n", ""},
		[]string{`- platform.snp.platform_info.ALIAS_CHECK_COMPLETE = "any" (tightens)`, `- platform.snp.platform_info.ECC_EN = true (loosens)`, `- platform.snp.platform_info.SMT_EN = false (loosens)`},
		[]string{`+ platform.snp.platform_info.ALIAS_CHECK_COMPLETE = "any" (loosens)`, `+ platform.snp.platform_info.ECC_EN = true (tightens)`, `+ platform.snp.platform_info.SMT_EN = false (tightens)`}},
	{"later ABI", []string{`abi = "1.55"`, `abi = "2.3"`}, []string{`~ platform.snp.guest_policy.abi = "2.3", was "1.55" (tightens)`}, []string{`~ platform.snp.guest_policy.abi = "1.55", was "2.3" (loosens)`}},
	{"any ABI", []string{`abi = "1.55", `, ``}, []string{`- platform.snp.guest_policy.abi = "1.55" (loosens)`}, []string{`+ platform.snp.guest_policy.abi = "1.55" (tightens)`}},
	{"a mitigation more", []string{"launch = [0, 63]", "launch = [0, 5, 63]"}, []string{`+ platform.snp.mitigations.launch = 5 (tightens)`}, []string{`- platform.snp.mitigations.launch = 5 (loosens)`}},
	{"no mitigations", []string{"mitigations = { launch = [0, 63], current = [1] }\n", ""},
		[]string{`- platform.snp.mitigations.current = 1 (loosens)`, `- platform.snp.mitigations.launch = 0 (loosens)`, `- platform.snp.mitigations.launch = 63 (loosens)`},
		[]string{`+ platform.snp.mitigations.current = 1 (tightens)`, `+ platform.snp.mitigations.launch = 0 (tightens)`, `+ platform.snp.mitigations.launch = 63 (tightens)`}},
	{"an attribute by default", []string{`SEPT_VE_DISABLE = "any", `, ""}, []string{`- platform.tdx.attributes.SEPT_VE_DISABLE = "any" (tightens)`}, []string{`+ platform.tdx.attributes.SEPT_VE_DISABLE = "any" (loosens)`}},
	{"an attribute against its default", []string{`SEPT_VE_DISABLE = "any"`, "SEPT_VE_DISABLE = true", `PERFMON = false`, "PERFMON = false, TPA = false"},
		[]string{`~ platform.tdx.attributes.SEPT_VE_DISABLE = true, was "any" (tightens)`, `+ platform.tdx.attributes.TPA = false (tightens)`},
		[]string{`~ platform.tdx.attributes.SEPT_VE_DISABLE = "any", was true (loosens)`, `- platform.tdx.attributes.TPA = false (tightens)`}}, // TPA = false has no effect, so no rule changes
	{"any feature", []string{"xfam = { AMX_TILEDATA = false }\n", ""}, []string{`- platform.tdx.xfam.AMX_TILEDATA = false (loosens)`}, []string{`+ platform.tdx.xfam.AMX_TILEDATA = false (tightens)`}},
	{"a service TD dropped", []string{`["M0", "M1", "unsaid"]`, `["M0", "unsaid"]`}, []string{`- platform.tdx.servicetd = "M1" (tightens)`}, []string{`+ platform.tdx.servicetd = "M1" (loosens)`}},
	{"no service TD said", []string{"servicetd = [\"M0\", \"M1\", \"unsaid\"]\n", ""}, []string{`- platform.tdx.servicetd = "M1" (tightens)`}, []string{`+ platform.tdx.servicetd = "M1" (loosens)`}},
	{"a service TD must be said", []string{`, "unsaid"]`, `]`}, []string{`- platform.tdx.servicetd = "unsaid" (tightens)`}, []string{`+ platform.tdx.servicetd = "unsaid" (loosens)`}},
	{"an owner dropped", []string{"owner = [ { mrowner = \"M1\", mrownerconfig = \"M2\" } ]\n", ""},
		[]string{`- platform.tdx.owner = { mrowner = "M1", mrownerconfig = "M2" } (tightens)`, `+ platform.tdx.owner = { mrowner = "M0", mrownerconfig = "M0" } (loosens)`},
		[]string{`- platform.tdx.owner = { mrowner = "M0", mrownerconfig = "M0" } (tightens)`, `+ platform.tdx.owner = { mrowner = "M1", mrownerconfig = "M2" } (loosens)`}},
	{"any owner", []string{`owner = [ { mrowner = "M1", mrownerconfig = "M2" } ]`, `owner = "any"`},
		[]string{`~ platform.tdx.owner = "any", was [{ mrowner = "M1", mrownerconfig = "M2" }] (loosens)`}, []string{`~ platform.tdx.owner = [{ mrowner = "M1", mrownerconfig = "M2" }], was "any" (tightens)`}},
	{"later TCB date", []string{"2025-05-14", "2025-11-12"}, []string{`~ platform.tdx.min_tcb_date = 2025-11-12T00:00:00Z, was 2025-05-14T00:00:00Z (tightens)`},
		[]string{`~ platform.tdx.min_tcb_date = 2025-05-14T00:00:00Z, was 2025-11-12T00:00:00Z (loosens)`}},
	{"any TCB date", []string{"min_tcb_date = 2025-05-14T00:00:00Z\n", ""}, []string{`- platform.tdx.min_tcb_date = 2025-05-14T00:00:00Z (loosens)`}, []string{`+ platform.tdx.min_tcb_date = 2025-05-14T00:00:00Z (tightens)`}},
	{"AWS's lists required", []string{`max_age = "5m"`, "max_age = \"5m\"\ncrl = \"required\""}, []string{`~ platform.nitro.crl = "required", was "if-present" (tightens)`}, []string{`~ platform.nitro.crl = "if-present", was "required" (loosens)`}},
	{"AWS's lists not required, spelled out", []string{`max_age = "5m"`, "max_age = \"5m\"\ncrl = \"if-present\""}, nil, nil},
	{"younger documents", []string{`"5m"`, `"90s"`}, []string{`~ platform.nitro.max_age = "90s", was "5m" (tightens)`}, []string{`~ platform.nitro.max_age = "5m", was "90s" (loosens)`}},
	{"an environment that is empty", []string{"key_mode = \"unit\"\n[task.keys.release.\"1\"]\n", "key_mode = \"unit\"\n[task.keys.release.\"1\"]\nenv = {}\n"},
		[]string{`+ task.keys.release.1.env = {  } (loosens)`}, []string{`- task.keys.release.1.env = {  } (loosens)`}},
}

func TestDiffOfHardware(t *testing.T) {
	for _, row := range hardwareDiffRows {
		t.Run(row.name, func(t *testing.T) {
			old, next := mustParse(t, policytest.IronText(t)), mustParse(t, policytest.IronText(t, row.edit...))
			wantDiff(t, old, next, spelled(row.want), "\x00")
			wantDiff(t, next, old, spelled(row.back), "\x00")
		})
	}
}

// spelled returns lines with their short digests written out.
func spelled(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = policytest.Spell(l)
	}
	return out
}

func TestDiffOfWholeTables(t *testing.T) {
	h := policytest.NewHouse()
	whole := mustParse(t, h.Text(t))
	scoring := policytest.Good[strings.Index(policytest.Good, "[task.scoring]"):]
	less := mustParse(t, h.Text(t, scoring, ""))

	changes := Compare(whole, less)
	if len(changes) != 1 || changes[0].Path != "task.scoring" || changes[0].Loosens {
		t.Errorf("got %v, want one change that tightens: the task is gone", changes)
	}
	changes = Compare(less, whole)
	if len(changes) < 12 || slices.ContainsFunc(changes, func(c Change) bool { return !c.Loosens || !strings.HasPrefix(c.Path, "task.scoring.") }) {
		t.Errorf("got %v, want each value of the new task, loosening", changes)
	}
	if changes := Compare(nil, whole); len(changes) < 25 || !Loosens(nil, whole) {
		t.Errorf("got %d changes from nothing, want every value", len(changes))
	}
}

// TestMixedChangeLoosens: a change that removes a permission and lengthens a lifetime loosens.
func TestMixedChangeLoosens(t *testing.T) {
	h := policytest.NewHouse()
	old, next := mustParse(t, h.Text(t)), mustParse(t, h.Text(t, `"30m"`, `"40m"`, "oneoff = true\n", ""))
	if !Loosens(old, next) {
		t.Error("got tightening, want loosening")
	}
}

func TestDiffLeavesPlaceOut(t *testing.T) {
	h := policytest.NewHouse()
	d := mustParse(t, h.Text(t))
	next := h.Text(t, "sequence     = 1\n", "sequence     = 2\n", `previous     = ""`, fmt.Sprintf("previous     = %q", d.Digest()), "09:00:00Z", "10:00:00Z")
	if got := Compare(d, mustParse(t, next)); len(got) > 0 {
		t.Errorf("got %v, want no change", got)
	}
}
