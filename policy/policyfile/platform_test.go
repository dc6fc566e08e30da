package policyfile

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

func TestParseReadsRules(t *testing.T) {
	got := mustParse(t, policytest.IronText(t)).Platforms
	turinChip := append(slices.Repeat([]byte{0xc3}, 8), make([]byte, 56)...)
	want := map[attest.Platform]attest.Rules{
		attest.SNP: {Roots: []attest.Digest{policytest.Digest("1")}, CRL: attest.CRLIfPresent, CheckedWithin: 72 * time.Hour, SNP: attest.SNPRules{
			Generations: map[string]attest.SNPFloor{
				"Milan": {Committed: attest.SNPTCB{Bootloader: 3, SNP: 8, Microcode: 115}},
				"Turin": {
					Committed: attest.SNPTCB{FMC: 1, Bootloader: 2, TEE: 3, SNP: 4, Microcode: 5},
					Reported:  attest.SNPTCB{FMC: 6, Bootloader: 7, TEE: 8, SNP: 9, Microcode: 10},
					Launch:    attest.SNPTCB{FMC: 11, Bootloader: 12, TEE: 13, SNP: 14, Microcode: 255},
				},
			},
			Chips:    attest.List{Values: [][]byte{policytest.Alike(1, 64), turinChip}},
			CutChips: [][]byte{policytest.Alike(2, 64)},
			IDKeys:   attest.List{Values: [][]byte{policytest.Alike(1, 48)}},
			SMT:      true, Migration: true, Provisional: true, VMPL: 2,
			PlatformInfo:      attest.Bits{"ALIAS_CHECK_COMPLETE": attest.DemandAny, "ECC_EN": attest.DemandSet, "SMT_EN": attest.DemandClear},
			GuestPolicy:       attest.Bits{"SINGLE_SOCKET": attest.DemandSet, "CXL_ALLOW": attest.DemandAny},
			GuestABI:          attest.SNPABI{Major: 1, Minor: 55},
			LaunchMitigations: 1<<63 | 1, CurrentMitigations: 2,
		}},
		attest.TDX: {Roots: []attest.Digest{policytest.Digest("2")}, Debug: true, CRL: attest.CRLRequired, DCAP: attest.DCAPRules{
			Statuses: []string{"SWHardeningNeeded", "OutOfDate"}, Advisories: []string{"INTEL-SA-00615"}, MinEvaluation: 17,
			Chips:      attest.List{Any: true},
			CutChips:   [][]byte{{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}},
			CutModels:  [][]byte{{0x90, 0xc0, 0x6f, 0, 0, 0}},
			Migration:  true,
			MinTCBDate: time.Date(2025, 5, 14, 0, 0, 0, 0, time.UTC),
			Attributes: attest.Bits{"SEPT_VE_DISABLE": attest.DemandAny, "PERFMON": attest.DemandClear, "LASS": attest.DemandSet},
			XFAM:       attest.Bits{"AMX_TILEDATA": attest.DemandClear},
			ServiceTD:  attest.List{Values: [][]byte{make([]byte, 48), policytest.Alike(1, 48), {}}},
			Owner:      attest.List{Values: [][]byte{append(policytest.Alike(1, 48), policytest.Alike(2, 48)...)}},
		}},
		attest.SGX: {Roots: []attest.Digest{policytest.Digest("2")}, DCAP: attest.DCAPRules{
			Chips: attest.List{Values: [][]byte{append(make([]byte, 15), 1)}}, MinISVSVN: 4,
		}},
		attest.Nitro: {Roots: []attest.Digest{policytest.Digest("3")}, Nitro: attest.NitroRules{MaxAge: 5 * time.Minute}},
	}
	for platform := range want {
		if !reflect.DeepEqual(got[platform], want[platform]) {
			t.Errorf("%s: got rules %+v, want %+v", platform, got[platform], want[platform])
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d platforms, want %d", len(got), len(want))
	}
}

func TestParseReadsHardwareReferences(t *testing.T) {
	d := mustParse(t, policytest.IronText(t))
	is := func(name string, value []byte) attest.Register { return attest.Register{Name: name, Value: value} }
	open := func(name string) attest.Register { return attest.Register{Name: name, Any: true} }
	want := []attest.ReferenceValue{
		{Platform: attest.SNP, Registers: []attest.Register{is("measurement", policytest.Alike(1, 48)), is("host-data", policytest.Alike(1, 32))}},
		{Platform: attest.SNP, Registers: []attest.Register{is("measurement", policytest.Alike(2, 48)), open("host-data")}},
		{Platform: attest.TDX, Registers: []attest.Register{
			is("mrtd", policytest.Alike(1, 48)), is("mrconfigid", policytest.Alike(3, 48)), is("rtmr0", policytest.Alike(2, 48)), is("rtmr1", policytest.Alike(3, 48)), open("rtmr2"), open("rtmr3"),
		}},
		{Platform: attest.SGX, Registers: []attest.Register{
			open("mrenclave"), is("mrsigner", policytest.Alike(1, 32)), is("isvprodid", []byte{1, 2}), is("configid", policytest.Alike(1, 64)),
		}},
		{Platform: attest.Nitro, Registers: []attest.Register{
			is("pcr0", policytest.Alike(1, 48)), is("pcr1", policytest.Alike(2, 48)), is("pcr2", policytest.Alike(3, 48)), is("pcr8", make([]byte, 48)),
		}},
	}
	var got []attest.ReferenceValue
	for _, ref := range d.references() {
		got = append(got, ref.ReferenceValue)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got reference values %v, want %v", got, want)
	}
}

const (
	snpRef   = `task.keys.release.1.reference[0]`
	tdxRef   = `task.keys.release.1.reference[1]`
	sgxRef   = `task.keys.release.1.reference[2]`
	nitroRef = `task.keys.release.1.reference[3]`
	milan    = "committed = { bootloader = 3, tee = 0, snp = 8, microcode = 115 }"
)

var ironRefusals = []refusal{
	{"soft beside hardware", "[platform.nitro]", "[platform.soft]\nroots = [\"sha256:R1\"]\n[platform.nitro]", "platform.soft", "development", "hardware alone"},
	{"snp without roots", "roots = [\"sha256:R1\"]\n", "", "platform.snp.roots", "required key", ""},
	{"unknown crl", `"if-present"`, `"optional"`, "platform.snp.crl", "value", "required or if-present"},
	{"crl as a flag", `crl = "if-present"`, "crl = false", "platform.snp.crl", "value", "required"},
	{"checked within a day", `"72h"`, `"24h"`, "platform.snp.checked_within", "value", "25h"},
	{"checked within a century", `"72h"`, `"8761h"`, "platform.snp.checked_within", "value", "8760h"},
	{"tpm's rule in nitro", `max_age = "5m"`, "max_age = \"5m\"\ncut_chips = []", "platform.nitro.cut_chips", "unknown key", ""},
	{"snp without chips", "chips = [\"C1\", \"c3c3c3c3c3c3c3c3\"]\n", "", "platform.snp.chips", "required key", ""},
	{"chips of another word", `chips = ["C1", "c3c3c3c3c3c3c3c3"]`, `chips = "all"`, "platform.snp.chips", "value", `"any"`},
	{"any inside a list", `chips = ["C1",`, `chips = ["any",`, "platform.snp.chips[0]", "value", "128"},
	{"chip id too short", `"c3c3c3c3c3c3c3c3"`, `"c3c3c3c3c3c3c3"`, "platform.snp.chips[1]", "value", "128"},
	{"chip id in capitals", `"c3c3c3c3c3c3c3c3"`, `"C3C3C3C3C3C3C3C3"`, "platform.snp.chips[1]", "value", "lower-case"},
	{"chip id twice", `"c3c3c3c3c3c3c3c3"`, `"C1"`, "platform.snp.chips", "element twice", ""},
	{"cut off chip of another size", `cut_chips = ["C2"]`, `cut_chips = ["K2"]`, "platform.snp.cut_chips[0]", "value", "128"},
	{"cut off every chip", `cut_chips = ["C2"]`, `cut_chips = "any"`, "platform.snp.cut_chips", "value", "a list"},
	{"snp without id keys", "id_keys = [\"sha384:K1\"]\n", "", "platform.snp.id_keys", "required key", ""},
	{"id key without prefix", `["sha384:K1"]`, `["K1"]`, "platform.snp.id_keys[0]", "value", "sha384:"},
	{"id key of SHA-256", `["sha384:K1"]`, `["sha256:R1"]`, "platform.snp.id_keys[0]", "value", "sha384:"},
	{"smt as text", "smt = true", `smt = "on"`, "platform.snp.smt", "value", "true or false"},
	{"snp migration as text", "migration = true\nprov", "migration = \"on\"\nprov", "platform.snp.migration", "value", "true or false"},
	{"provisional firmware as text", "provisional_firmware = true", `provisional_firmware = "on"`, "platform.snp.provisional_firmware", "value", "true or false"},
	{"vmpl 4", "vmpl = 2", "vmpl = 4", "platform.snp.vmpl", "value", "0 to 3"},
	{"vmpl below 0", "vmpl = 2", "vmpl = -1", "platform.snp.vmpl", "value", "0 to 3"},
	{"snp without generations", policytest.Generations, "", "platform.snp.generation", "required key", ""},
	{"no generation", policytest.Generations, "generation = {}\n", "platform.snp.generation", "number of generations", "at least 1"},
	{"unknown generation", "generation.Milan", "generation.Rome", "platform.snp.generation.Rome", "name", "Milan"},
	{"generation without floor", milan + "\n", "", "platform.snp.generation.Milan.committed", "required key", ""},
	{"unknown floor", milan, milan + "\ncurrent = { snp = 8 }", "platform.snp.generation.Milan.current", "unknown key", "committed"},
	{"floor without a component", "snp = 8, ", "", "platform.snp.generation.Milan.committed.snp", "required key", ""},
	{"floor without microcode", ", microcode = 115", "", "platform.snp.generation.Milan.committed.microcode", "required key", ""},
	{"floor over a byte", "microcode = 115", "microcode = 256", "platform.snp.generation.Milan.committed.microcode", "value", "255"},
	{"floor below 0", "tee = 0", "tee = -1", "platform.snp.generation.Milan.committed.tee", "value", "0 to"},
	{"fmc before Turin", "{ bootloader = 3", "{ fmc = 1, bootloader = 3", "platform.snp.generation.Milan.committed.fmc", "unknown key", ""},
	{"Turin without fmc", "{ fmc = 6, ", "{ ", "platform.snp.generation.Turin.reported.fmc", "required key", ""},
	{"unknown component", "{ bootloader = 3", "{ boot = 3, bootloader = 3", "platform.snp.generation.Milan.committed.boot", "unknown key", ""},
	{"unknown key of snp", "vmpl = 2", "vmpl = 2\nvmpls = 2", "platform.snp.vmpls", "unknown key", "vmpl"},
	{"hidden chips beside a list", "hidden_chips = false", "hidden_chips = true", "platform.snp.hidden_chips", "chips", `"any"`},
	{"hidden chips as text", "hidden_chips = false", `hidden_chips = "yes"`, "platform.snp.hidden_chips", "value", "true or false"},
	{"a chip id of zeros", `"c3c3c3c3c3c3c3c3"`, `"0000000000000000"`, "platform.snp.chips[1]", "value", "not all zero"},
	{"cut off a chip id of zeros", `cut_chips = ["C2"]`, `cut_chips = ["C0"]`, "platform.snp.cut_chips[0]", "value", "not all zero"},
	{"unknown bit of the platform", "ECC_EN", "ECC", "platform.snp.platform_info.ECC", "unknown key", "ECC_EN"},
	{"bit as a number", "ECC_EN = true", "ECC_EN = 1", "platform.snp.platform_info.ECC_EN", "value", `"any"`},
	{"bit as another word", "ECC_EN = true", `ECC_EN = "on"`, "platform.snp.platform_info.ECC_EN", "value", `"any"`},
	{"platform info as a list", `platform_info = { ALIAS_CHECK_COMPLETE = "any", ECC_EN = true, SMT_EN = false }`, `platform_info = ["ECC_EN"]`, "platform.snp.platform_info", "value", "a table"},
	{"bit that debug rules", "SINGLE_SOCKET = true", "DEBUG = true", "platform.snp.guest_policy.DEBUG", "unknown key", ""},
	{"bit that smt rules", "SINGLE_SOCKET = true", "SMT = true", "platform.snp.guest_policy.SMT", "unknown key", ""},
	{"ABI of one number", `"1.55"`, `"1"`, "platform.snp.guest_policy.abi", "value", "1.55"},
	{"ABI over a byte", `"1.55"`, `"1.256"`, "platform.snp.guest_policy.abi", "value", "1.55"},
	{"ABI in another spelling", `"1.55"`, `"1.055"`, "platform.snp.guest_policy.abi", "value", "1.55"},
	{"ABI of three numbers", `"1.55"`, `"1.55.1"`, "platform.snp.guest_policy.abi", "value", "1.55"},
	{"bit 64 of a vector", "launch = [0, 63]", "launch = [0, 64]", "platform.snp.mitigations.launch[1]", "value", "0 to 63"},
	{"bit -1 of a vector", "current = [1]", "current = [-1]", "platform.snp.mitigations.current[0]", "value", "0 to 63"},
	{"bit of a vector as text", "current = [1]", `current = ["1"]`, "platform.snp.mitigations.current[0]", "value", "0 to 63"},
	{"bit of a vector twice", "launch = [0, 63]", "launch = [0, 0]", "platform.snp.mitigations.launch", "element twice", ""},
	{"unknown vector", "current = [1]", "now = [1]", "platform.snp.mitigations.now", "unknown key", ""},
	{"snp with a key of Intel's", "vmpl = 2", "vmpl = 2\nmin_evaluation = 2", "platform.snp.min_evaluation", "unknown key", ""},

	{"tdx without chips", "chips = \"any\"\n", "", "platform.tdx.chips", "required key", ""},
	{"ppid too long", `["00000000000000000000000000000001"]`, `["0000000000000000000000000000000001"]`, "platform.sgx.chips[0]", "value", "32"},
	{"cut off ppid too short", `["0123456789abcdef0123456789abcdef"]`, `["0123456789abcdef"]`, "platform.tdx.cut_chips[0]", "value", "32"},
	{"cut off model too short", `"90c06f000000"`, `"90c06f"`, "platform.tdx.cut_models[0]", "value", "12"},
	{"snp with cut_models", "vmpl = 2", "vmpl = 2\ncut_models = []", "platform.snp.cut_models", "unknown key", ""},
	{"Revoked accepted", `"OutOfDate"]`, `"Revoked"]`, "platform.tdx.statuses[1]", "value", "OutOfDate"},
	{"UpToDate named", `"OutOfDate"]`, `"UpToDate"]`, "platform.tdx.statuses[1]", "value", "SWHardeningNeeded"},
	{"status twice", `"OutOfDate"]`, `"SWHardeningNeeded"]`, "platform.tdx.statuses", "element twice", ""},
	{"advisory of another form", `"INTEL-SA-00615"`, `"INTEL-SA-615"`, "platform.tdx.advisories[0]", "value", "INTEL-SA-00615"},
	{"advisory with more", `"INTEL-SA-00615"`, `"INTEL-SA-00615 "`, "platform.tdx.advisories[0]", "value", ""},
	{"evaluation below 0", "min_evaluation = 17", "min_evaluation = -1", "platform.tdx.min_evaluation", "value", "0 to"},
	{"evaluation over 32 bits", "min_evaluation = 17", "min_evaluation = 4294967296", "platform.tdx.min_evaluation", "value", "4294967295"},
	{"tdx migration as text", "migration = true\n\n", "migration = \"yes\"\n\n", "platform.tdx.migration", "value", "true or false"},
	{"attribute that migration rules", "PERFMON = false", "MIGRATABLE = false", "platform.tdx.attributes.MIGRATABLE", "unknown key", ""},
	{"unknown attribute", "PERFMON", "PERFMONS", "platform.tdx.attributes.PERFMONS", "unknown key", "PERFMON"},
	{"unknown feature", "AMX_TILEDATA", "AMX", "platform.tdx.xfam.AMX", "unknown key", ""},
	{"service TD too short", `"M0", "M1", "uns`, `"M0", "H1", "uns`, "platform.tdx.servicetd[1]", "value", "96"},
	{"service TD of another word", `servicetd = ["M0", "M1", "unsaid"]`, `servicetd = "none"`, "platform.tdx.servicetd", "value", `"any"`},
	{"owner without configuration", `, mrownerconfig = "M2"`, "", "platform.tdx.owner[0].mrownerconfig", "required key", ""},
	{"owner too short", `mrowner = "M1"`, `mrowner = "H1"`, "platform.tdx.owner[0].mrowner", "value", "96"},
	{"owner with more", `mrownerconfig = "M2"`, `mrownerconfig = "M2", name = "x"`, "platform.tdx.owner[0].name", "unknown key", ""},
	{"owner of another word", `owner = [ { mrowner = "M1", mrownerconfig = "M2" } ]`, `owner = "none"`, "platform.tdx.owner", "value", `"any"`},
	{"owner twice", `mrownerconfig = "M2" }`, `mrownerconfig = "M2" }, { mrowner = "M1", mrownerconfig = "M2" }`, "platform.tdx.owner", "element twice", ""},
	{"TCB date as text", "2025-05-14T00:00:00Z", `"2025-05-14"`, "platform.tdx.min_tcb_date", "value", "a time"},
	{"sgx with attributes", "min_isvsvn = 4", "attributes = {}", "platform.sgx.attributes", "unknown key", ""},
	{"sgx with a status of TDs", "min_isvsvn = 4", `statuses = ["TDRelaunchAdvised"]`, "platform.sgx.statuses[0]", "value", ""},
	{"tdx with isvsvn", "min_evaluation = 17", "min_isvsvn = 17", "platform.tdx.min_isvsvn", "unknown key", ""},
	{"sgx with migration", "min_isvsvn = 4", "migration = true", "platform.sgx.migration", "unknown key", ""},
	{"isvsvn over 16 bits", "min_isvsvn = 4", "min_isvsvn = 65536", "platform.sgx.min_isvsvn", "value", "65535"},
	{"nitro without max_age", "max_age = \"5m\"\n", "", "platform.nitro.max_age", "required key", ""},
	{"max_age 0", `"5m"`, `"0s"`, "platform.nitro.max_age", "value", "1s"},
	{"max_age over the certificate's life", `"5m"`, `"3h1s"`, "platform.nitro.max_age", "value", "3h"},
	{"unknown crl of nitro", `max_age = "5m"`, "max_age = \"5m\"\ncrl = \"none\"", "platform.nitro.crl", "value", "required or if-present"},
	{"nitro with chips", `max_age = "5m"`, "max_age = \"5m\"\nchips = \"any\"", "platform.nitro.chips", "unknown key", ""},

	{"measurement left out", `measurement = "sha384:M2", `, "", snpRef + ".measurement", "required key", ""},
	{"measurement of SHA-256", `"sha384:M2", any = ["host-data"]`, `"sha256:R2", any = ["host-data"]`, snpRef + ".measurement", "value", "sha384:"},
	{"measurement of zeros", `"sha384:M2", any = ["host-data"]`, `"sha384:M0", any = ["host-data"]`, snpRef + ".measurement", "value", "not all zero"},
	{"host data left out", `, any = ["host-data"]`, "", snpRef + ".host-data", "required key", ""},
	{"host data too short", `host-data = "H1"`, `host-data = "00"`, "authority.reference[0].host-data", "value", "64"},
	{"register of another platform", `measurement = "sha384:M2"`, `measurement = "sha384:M2", pcr0 = "sha384:M2"`, snpRef + ".pcr0", "unknown key", ""},
	{"mrtd of zeros", `mrtd = "sha384:M1"`, `mrtd = "sha384:M0"`, tdxRef + ".mrtd", "value", "not all zero"},
	{"rtmr left out", `rtmr0 = "sha384:M2", `, "", tdxRef + ".rtmr0", "required key", ""},
	{"rtmr with value and any", `rtmr1 = "sha384:M3"`, `rtmr1 = "sha384:M3", rtmr2 = "sha384:M3"`, tdxRef + ".rtmr2", "key", "any"},
	{"mrconfigid with prefix", `mrconfigid = "M3"`, `mrconfigid = "sha384:M3"`, tdxRef + ".mrconfigid", "value", "96"},
	{"any of an SNP register", `["rtmr2", "rtmr3"]`, `["rtmr2", "host-data"]`, tdxRef + ".any[1]", "value", "mrtd"},
	{"mrsigner left out", `mrsigner = "@signer", `, "", sgxRef + ".mrsigner", "required key", ""},
	{"mrsigner of zeros", `"@signer"`, `"sha256:R0"`, sgxRef + ".mrsigner", "value", "sha256:"},
	{"product id left out", "isvprodid = 258, ", "", sgxRef + ".isvprodid", "required key", ""},
	{"product id over 16 bits", "258", "65536", sgxRef + ".isvprodid", "value", "65535"},
	{"configid too short", `configid = "G1"`, `configid = "H1"`, sgxRef + ".configid", "value", "128"},
	{"pcr0 of zeros, as in debug", `pcr0 = "sha384:M1"`, `pcr0 = "sha384:M0"`, nitroRef + ".pcr0", "value", "not all zero"},
	{"pcr1 of zeros, as in debug", `pcr1 = "sha384:M2"`, `pcr1 = "sha384:M0"`, nitroRef + ".pcr1", "value", "not all zero"},
	{"pcr2 of zeros, as in debug", `pcr2 = "sha384:M3"`, `pcr2 = "sha384:M0"`, nitroRef + ".pcr2", "value", "not all zero"},
	{"pcr8 left out", `, pcr8 = "sha384:M0"`, "", nitroRef + ".pcr8", "required key", ""},
	{"measurement of the authority in a task", `"sha384:M2", any = ["host-data"]`, `"sha384:M1", any = ["host-data"]`, snpRef, "measurement twice", "authority"},
	{"reference value of a platform without table", "[platform.nitro]\nroots = [\"sha256:R3\"]\nmax_age = \"5m\"\n", "", nitroRef, "platform", "[platform.nitro]"},
}

func TestParseHardwareRefusals(t *testing.T) {
	for _, r := range ironRefusals {
		t.Run(r.name, func(t *testing.T) {
			_, err := Parse(policytest.IronText(t, r.old, r.new))
			policytest.Refused(t, err, wire.BadPolicy)
			var faults policytoml.Faults
			if !errors.As(err, &faults) {
				t.Fatalf("got error %v, want Faults", err)
			}
			if !slices.ContainsFunc(faults, r.is) {
				t.Errorf("got faults %q, want one at %q, rule %q, want %q", faults, r.path, r.rule, r.want)
			}
		})
	}
}

// TestParseHardwareInDevelopment: each hardware platform is refused in a development policy, and
// soft in any other.
func TestParseHardwareInDevelopment(t *testing.T) {
	_, err := Parse(policytest.IronText(t, "\n[owners]", "development = true\n\n[owners]"))
	var faults policytoml.Faults
	errors.As(err, &faults)
	var got []string
	for _, f := range faults {
		if f.Rule == "development" {
			got = append(got, f.Path)
		}
	}
	if want := []string{"platform.nitro", "platform.sgx", "platform.snp", "platform.tdx"}; !slices.Equal(got, want) {
		t.Errorf("got faults at %q, want at %q", got, want)
	}
	mustParse(t, policytest.IronText(t, "\n[owners]", "development = false\n\n[owners]"))
}

// TestKindsAreComplete: every key and register of every platform that a policy may name can be
// parsed, and devices have no registers.
func TestKindsAreComplete(t *testing.T) {
	for _, p := range Platforms() {
		if isTEE(p) == p.Platform.IsDevice() {
			t.Errorf("%s: registers %q", p.Platform, p.RegisterNames())
		}
		var faults policytoml.Faults
		empty := policytoml.NewTable("platform", map[string]any{}, &faults)
		readKeys(empty, p.Keys, new(attest.Rules)) // panics at a kind without a parser
		for _, r := range p.Registers {
			measuredNames{}.register(empty, r.Name, r)
		}
	}
}
