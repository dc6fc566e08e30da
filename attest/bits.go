package attest

import (
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Demand is what policy states about one bit of a field that the launcher or host of
// a TEE chooses.
type Demand uint8

// The demands. The zero Demand leaves a bit to the table of its field.
const (
	_           Demand = iota
	DemandAny          // either value
	DemandSet          // 1
	DemandClear        // 0
)

// Bits are demands on the bits of one [BitField], by name. A bit that they do not
// name is as the field's own table states, so the zero Bits are the careful ones.
type Bits map[string]Demand

// Bit is one bit of a [BitField].
type Bit struct {
	Position int
	Name     string // as the vendor writes it
	Default  Demand // where policy states nothing; the zero Demand is DemandAny
	// Rule is the policy key that decides on the bit in place of its field's;
	// empty for most.
	Rule string
}

// BitField is a field of evidence whose bits the launcher or host of a TEE
// chooses, and nothing measures. A bit that is in no table is refused by its
// number: what it does is not known.
type BitField struct {
	Name string // for people, with the platform
	Key  string // of the policy table that has demands on it
	Bits []Bit
}

// Bit fields of each platform (Intel TDX module, ATTRIBUTES and XFAM; AMD 56860,
// PLATFORM_INFO and guest policy).
var (
	TDAttributes = BitField{"dcap: TD attributes", "attributes", []Bit{
		{Position: 0, Name: "DEBUG", Rule: "debug"},
		{Position: 4, Name: "HGS_PLUS_PROF", Rule: "debug"},
		{Position: 5, Name: "PERF_PROF", Rule: "debug"},
		{Position: 6, Name: "PMT_PROF", Rule: "debug"},
		{Position: 16, Name: "ICSSD"}, // defence against single-stepping
		{Position: 27, Name: "LASS"},
		// Without it the host makes any access of the guest raise an exception.
		{Position: 28, Name: "SEPT_VE_DISABLE", Default: DemandSet},
		{Position: 29, Name: "MIGRATABLE", Rule: "migration"},
		{Position: 30, Name: "PKS"},
		{Position: 31, Name: "KL"},
		{Position: 62, Name: "TPA", Default: DemandClear}, // an agent that provisions devices is no guest
		{Position: 63, Name: "PERFMON"},
	}}
	XFAM = BitField{"dcap: XFAM", "xfam", []Bit{
		{Position: 0, Name: "X87", Default: DemandSet},
		{Position: 1, Name: "SSE", Default: DemandSet},
		{Position: 2, Name: "AVX"},
		{Position: 5, Name: "AVX512_OPMASK"},
		{Position: 6, Name: "AVX512_ZMM_HI256"},
		{Position: 7, Name: "AVX512_HI16_ZMM"},
		{Position: 8, Name: "PT"},
		{Position: 9, Name: "PKRU"},
		{Position: 11, Name: "CET_U"},
		{Position: 12, Name: "CET_S"},
		{Position: 14, Name: "UINTR"},
		{Position: 15, Name: "LBR"},
		{Position: 17, Name: "AMX_TILECFG"},
		{Position: 18, Name: "AMX_TILEDATA"},
		{Position: 19, Name: "APX"},
	}}
	SNPPlatformInfo = BitField{"snp: platform info", "platform_info", []Bit{
		{Position: 0, Name: "SMT_EN"},
		{Position: 1, Name: "TSME_EN"},
		{Position: 2, Name: "ECC_EN"},
		{Position: 3, Name: "RAPL_DIS"},
		{Position: 4, Name: "CIPHERTEXT_HIDING_DRAM_EN"},
		// Without it two addresses may be one cell of memory (AMD-SB-3015).
		{Position: 5, Name: "ALIAS_CHECK_COMPLETE", Default: DemandSet},
		{Position: 6, Name: "IOMMU_WRITE_SAFE"},
		{Position: 7, Name: "TIO_EN"},
	}}
	SNPGuestPolicy = BitField{"snp: guest policy", "guest_policy", []Bit{
		{Position: 16, Name: "SMT", Rule: "smt"},
		{Position: 18, Name: "MIGRATE_MA", Rule: "migration"},
		{Position: 19, Name: "DEBUG", Rule: "debug"},
		{Position: 20, Name: "SINGLE_SOCKET"},
		{Position: 21, Name: "CXL_ALLOW", Default: DemandClear}, // memory outside the machine's own
		{Position: 22, Name: "MEM_AES_256_XTS"},
		{Position: 23, Name: "RAPL_DIS"},
		{Position: 24, Name: "CIPHERTEXT_HIDING_DRAM"},
		{Position: 25, Name: "PAGE_SWAP_DISABLE"},
	}}
)

// Names are the bits that a policy may have demands on, in their order.
func (f BitField) Names() []string {
	var names []string
	for _, b := range f.Bits {
		if b.Rule == "" {
			names = append(names, b.Name)
		}
	}
	return names
}

// Default is what is demanded of a bit that policy does not name. Of a bit that
// is not in the table it is the zero Demand.
func (f BitField) Default(name string) Demand {
	i := slices.IndexFunc(f.Bits, func(b Bit) bool { return b.Name == name && b.Rule == "" })
	if i < 0 {
		return 0
	}
	return max(f.Bits[i].Default, DemandAny)
}

// SetNames names the bits of a value that are 1, one that is in no table by its number.
func (f BitField) SetNames(value uint64) []string {
	names := []string{}
	for position := range 64 {
		if value>>position&1 == 0 {
			continue
		}
		name := fmt.Sprint("bit ", position)
		if i := slices.IndexFunc(f.Bits, func(b Bit) bool { return b.Position == position }); i >= 0 {
			name = f.Bits[i].Name
		}
		names = append(names, name)
	}
	return names
}

// Permit compares a value with the demands. It refuses with "tcb-status" and the
// name of the first bit that is not as demanded, and then bits that are in no
// table. Bits under a rule of their own are left to it.
func (f BitField) Permit(value uint64, demands Bits) error {
	unknown := value
	for _, b := range f.Bits {
		unknown &^= 1 << b.Position
		if b.Rule != "" {
			continue
		}
		demand := demands[b.Name]
		if demand == 0 {
			demand = f.Default(b.Name)
		}
		set := value>>b.Position&1 == 1
		if set && demand == DemandClear || !set && demand == DemandSet {
			return f.refuse(b.Name, set, fmt.Sprintf(`, or %s = { %s = "any" } in policy`, f.Key, b.Name))
		}
	}
	if unknown != 0 {
		return f.refuse(f.SetNames(unknown)[0], true, ": no rule knows what it does")
	}
	return nil
}

// refuse states which bit is wrong, and after what it should be how to change that.
func (f BitField) refuse(name string, set bool, hint string) error {
	got, want := "clear", "set"
	if set {
		got, want = want, got
	}
	return wire.Refuse(wire.BadTCB, f.Name+": "+name, got, want+hint)
}
