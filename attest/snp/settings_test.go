package snp_test

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// both combines two edits of a report.
func both(a, b func([]byte)) func([]byte) {
	return func(report []byte) { a(report); b(report) }
}

// version5 makes a report of version 5 with mitigation vectors.
func version5(launch, current byte) func([]byte) {
	return both(put(0, 5), both(put(0x1f8, launch), put(0x200, current)))
}

// TestSettings covers each setting that a host or launcher chooses and no measurement contains:
// the result without a rule, and the effect of each rule. A refusal names the bit.
func TestSettings(t *testing.T) {
	anyOf := func(name string) attest.Bits { return attest.Bits{name: attest.DemandAny} }
	set := func(name string) attest.Bits { return attest.Bits{name: attest.DemandSet} }
	unset := func(name string) attest.Bits { return attest.Bits{name: attest.DemandClear} }
	platform := func(b attest.Bits) attest.SNPRules { return attest.SNPRules{PlatformInfo: b} }
	guest := func(b attest.Bits) attest.SNPRules { return attest.SNPRules{GuestPolicy: b} }
	info := func(bits byte) func([]byte) { return put(0x40, bits) }
	policy := func(bits ...byte) func([]byte) { return put(0x08, bits...) } // ABI minor, ABI major, bits 16 to 23, 24 to 31
	tests := []struct {
		name  string
		edit  func([]byte)
		rules attest.SNPRules
		want  string // part of the refusal; empty: accepted
	}{
		{"no rule, memory without aliases", info(0x20), attest.SNPRules{}, ""},
		{"no rule, all zero", info(0), attest.SNPRules{}, "ALIAS_CHECK_COMPLETE"},
		{"aliases are allowed", info(0), platform(anyOf("ALIAS_CHECK_COMPLETE")), ""},
		{"shared cores of the machine, no rule", info(0x21), attest.SNPRules{}, ""},
		{"shared cores of the machine are refused", info(0x21), platform(unset("SMT_EN")), "SMT_EN"},
		{"no TSME", info(0x20), platform(set("TSME_EN")), "TSME_EN"},
		{"no ECC", info(0x20), platform(set("ECC_EN")), "ECC_EN"},
		{"ECC", info(0x24), platform(set("ECC_EN")), ""},
		{"RAPL on", info(0x20), platform(set("RAPL_DIS")), "RAPL_DIS"},
		{"ciphertext not hidden", info(0x20), platform(set("CIPHERTEXT_HIDING_DRAM_EN")), "CIPHERTEXT_HIDING_DRAM_EN"},
		{"ciphertext hidden", info(0x30), platform(set("CIPHERTEXT_HIDING_DRAM_EN")), ""},
		{"IOMMU writes", info(0x60), platform(unset("IOMMU_WRITE_SAFE")), "IOMMU_WRITE_SAFE"},
		{"trusted devices", info(0xa0), platform(unset("TIO_EN")), "TIO_EN"},
		{"unknown bit of the platform", put(0x40, 0x20, 1), attest.SNPRules{}, "platform info: bit 8"},
		{"highest bit of the platform", put(0x47, 0x80), attest.SNPRules{}, "platform info: bit 63"},

		{"two sockets", policy(0, 0, 0x02), guest(set("SINGLE_SOCKET")), "SINGLE_SOCKET"},
		{"one socket", policy(0, 0, 0x12), guest(set("SINGLE_SOCKET")), ""},
		{"memory of CXL", policy(0, 0, 0x22), attest.SNPRules{}, "CXL_ALLOW"},
		{"memory of CXL is allowed", policy(0, 0, 0x22), guest(anyOf("CXL_ALLOW")), ""},
		{"XEX", policy(0, 0, 0x02), guest(set("MEM_AES_256_XTS")), "MEM_AES_256_XTS"},
		{"XTS", policy(0, 0, 0x42), guest(set("MEM_AES_256_XTS")), ""},
		{"guest without RAPL_DIS", policy(0, 0, 0x02), guest(set("RAPL_DIS")), "RAPL_DIS"},
		{"guest without hiding", policy(0, 0, 0x02, 0), guest(set("CIPHERTEXT_HIDING_DRAM")), "CIPHERTEXT_HIDING_DRAM"},
		{"guest with hiding", policy(0, 0, 0x02, 1), guest(set("CIPHERTEXT_HIDING_DRAM")), ""},
		{"pages may be swapped", policy(0, 0, 0x02, 0), guest(set("PAGE_SWAP_DISABLE")), "PAGE_SWAP_DISABLE"},
		{"pages stay", policy(0, 0, 0x02, 2), guest(set("PAGE_SWAP_DISABLE")), ""},
		{"unknown bit of the guest policy", policy(0, 0, 0x02, 4), attest.SNPRules{}, "guest policy: bit 26"},
		{"highest bit of the guest policy", put(0x0f, 0x80), attest.SNPRules{}, "guest policy: bit 63"},
		{"older ABI", policy(54, 1), attest.SNPRules{GuestABI: attest.SNPABI{Major: 1, Minor: 55}}, "1.54"},
		{"older major ABI", policy(255, 0), attest.SNPRules{GuestABI: attest.SNPABI{Major: 1}}, "0.255"},
		{"ABI met exactly", policy(55, 1), attest.SNPRules{GuestABI: attest.SNPABI{Major: 1, Minor: 55}}, ""},
		{"newer major ABI", policy(0, 2), attest.SNPRules{GuestABI: attest.SNPABI{Major: 1, Minor: 55}}, ""},

		{"version 5, mitigation vectors zero, no rule", version5(0, 0), attest.SNPRules{}, ""},
		{"no mitigation at launch", version5(1, 3), attest.SNPRules{LaunchMitigations: 2}, "launch mitigation vector"},
		{"no mitigation now", version5(3, 1), attest.SNPRules{CurrentMitigations: 2}, "current mitigation vector"},
		{"more mitigations than demanded", version5(7, 7), attest.SNPRules{LaunchMitigations: 2, CurrentMitigations: 5}, ""},
		{"mitigations of a report that has none", put(0, 4), attest.SNPRules{LaunchMitigations: 1 << 63}, "bit 63"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, "Milan", firmware)
			s.device.Edit = tt.edit
			rules := tt.rules
			rules.Generations, rules.Chips, rules.IDKeys = s.rules.SNP.Generations, s.rules.SNP.Chips, s.rules.SNP.IDKeys
			s.rules.SNP = rules
			got, err := s.appraise(t)
			if tt.want == "" && err != nil {
				t.Error(err)
			}
			if tt.want != "" && (!errors.Is(err, wire.BadTCB) || got.Appraised() || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("err = %v, want reason %q that names %q", err, wire.BadTCB, tt.want)
			}
		})
	}
}

// TestHiddenChip: a host that hides the chip's id would escape every cut-off of chips. The report
// is refused, unless the policy accepts hidden chips and cuts off no chip.
func TestHiddenChip(t *testing.T) {
	hidden := func(change func(r *attest.SNPRules)) error {
		s := newScene(t, "Milan", firmware)
		s.use(s.vendor.CloudChip(firmware, "cloud.example"))
		change(&s.rules.SNP)
		_, err := s.appraise(t)
		return err
	}
	other := slices.Repeat([]byte{7}, 64)
	if err := hidden(func(r *attest.SNPRules) { r.CutChips = [][]byte{other} }); !errors.Is(err, wire.NoPlatform) || !strings.Contains(err.Error(), "hidden_chips") {
		t.Errorf("a cut chip: err = %v, want reason %q that names hidden_chips", err, wire.NoPlatform)
	}
	if err := hidden(func(*attest.SNPRules) {}); !errors.Is(err, wire.NoPlatform) {
		t.Errorf("no rule: err = %v, want reason %q", err, wire.NoPlatform)
	}
	if err := hidden(func(r *attest.SNPRules) { r.HiddenChips, r.Chips = true, attest.List{Values: [][]byte{other}} }); !errors.Is(err, wire.NoPlatform) {
		t.Errorf("a list of chips: err = %v, want reason %q", err, wire.NoPlatform)
	}
	if err := hidden(func(r *attest.SNPRules) { r.HiddenChips, r.CutChips = true, [][]byte{other} }); !errors.Is(err, wire.NoPlatform) {
		t.Errorf("hidden chips beside a cut chip: err = %v, want reason %q", err, wire.NoPlatform)
	}
	if err := hidden(func(r *attest.SNPRules) { r.HiddenChips = true }); err != nil {
		t.Errorf("hidden chips: %v", err)
	}
}

// TestShownChipUnderVLEK: the report is signed with a provider's key (VLEK), but the host shows
// the chip's id. Cut-offs apply to that chip, and the result names it.
func TestShownChipUnderVLEK(t *testing.T) {
	for product, size := range map[string]int{"Milan": 64, "Turin": 8} {
		id := append(slices.Repeat([]byte{7}, size), make([]byte, 64-size)...)
		for _, cut := range []bool{false, true} {
			s := newScene(t, product, firmware)
			s.use(s.vendor.CloudChip(firmware, "cloud.example"))
			s.device.Edit = put(0x1a0, id...)
			if cut {
				s.rules.SNP.CutChips = [][]byte{id}
			}
			got, err := s.appraise(t)
			if cut && !errors.Is(err, wire.NoPlatform) {
				t.Errorf("%s, a cut chip: err = %v, want reason %q", product, err, wire.NoPlatform)
			}
			if !cut && (err != nil || got.ChipID() != attestHex(id[:size])) {
				t.Errorf("%s: chip = %q, %v, want %q", product, got.ChipID(), err, attestHex(id[:size]))
			}
		}
	}
}

// TestSettingsAreShown: the details list every known bit by its name, and a new bit by its
// number.
func TestSettingsAreShown(t *testing.T) {
	s := newScene(t, "Milan", firmware)
	s.device.Edit = both(put(0x08, 55, 1, 0x12, 6), put(0x40, 0x24, 1))
	raw := s.evidence(t).Raw
	claims, err := snp.Platform().Appraiser().(interface {
		UnverifiedClaims([]byte) (attest.Claims, error)
	}).UnverifiedClaims(raw)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"platform_bits": []string{"ECC_EN", "ALIAS_CHECK_COMPLETE", "bit 8"},
		"policy_bits":   []string{"SINGLE_SOCKET", "PAGE_SWAP_DISABLE", "bit 26"},
		"policy_abi":    "1.55",
		"policy":        "0x6120137",
	}
	got := maps.Clone(claims.Details)
	maps.DeleteFunc(got, func(name string, _ any) bool { return want[name] == nil })
	if !reflect.DeepEqual(got, want) {
		t.Errorf("details = %v, want %v", got, want)
	}
}

// TestSpellingOfCertificates: the text around certificates is not signed, so its line ends may
// vary.
func TestSpellingOfCertificates(t *testing.T) {
	for name, row := range map[string]struct {
		text func(string) string
		want error
	}{
		"CR LF":                    {func(text string) string { return strings.ReplaceAll(text, "\n", "\r\n") }, nil},
		"one line each":            {func(text string) string { return strings.ReplaceAll(text, "\n", "") }, nil},
		"no last line end":         {func(text string) string { return strings.TrimSuffix(text, "\n") }, nil},
		"an empty line at the end": {func(text string) string { return text + "\n" }, nil},
		"text before":              {func(text string) string { return "ASK\n" + text }, wire.Malformed},
		"one certificate":          {func(text string) string { return text[:len(text)/2] }, wire.Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t, "Milan", firmware)
			s.question.Endorsements["ask_ark"] = []byte(row.text(string(s.question.Endorsements["ask_ark"])))
			if _, err := s.appraise(t); !errors.Is(err, row.want) {
				t.Errorf("err = %v, want %v", err, row.want)
			}
		})
	}
}
