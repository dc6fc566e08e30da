// Package snprules has the keys and registers that a policy file may name of AMD SEV-SNP, on Azure too.
package snprules

import (
	"bytes"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/cohort-tee/cohort/attest"
)

// SNP are the rules of [attest.SNP].
var SNP = attest.PolicyRules{
	Platform: attest.SNP,
	Registers: []attest.RegisterForm{
		{Name: "measurement", Form: attest.FormCode384}, {Name: "host-data", Form: attest.FormBytes, Size: 32},
	},
	Keys:        policyKeys(),
	Check:       checkRules,
	Chip:        parseChip,
	ChipRefused: chipRefused,
	Warn:        addWarnings,
}

// Azure are the rules of [attest.AzureSNP]: there the paravisor vouches for the PCRs, so
// that they mean nothing where its measurement is left open.
var Azure = attest.PolicyRules{
	Platform: attest.AzureSNP,
	Registers: append([]attest.RegisterForm{
		{Name: "measurement", Form: attest.FormCode384, Shut: true}, {Name: "host-data", Form: attest.FormBytes, Size: 32},
	}, attest.PCRRegisters(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23)...),
	Keys:        SNP.Keys,
	Check:       checkRules,
	Chip:        parseChip,
	ChipRefused: chipRefused,
	Warn:        addWarnings,
}

// Generations are the CPU generations that policy may name. The firmware of Turin has an FMC.
const (
	milan = "Milan"
	genoa = "Genoa"
	turin = "Turin"
)

const wantChip = "128 lower-case hexadecimal digits, or the 16 of a Turin, not all zero"

// parseChip reads a chip id. The 8 bytes of a Turin are before zeros in reports.
// Zeros are no id: a host writes them to hide one.
func parseChip(s string) []byte {
	b := attest.Digits(s, 64)
	if short := attest.Digits(s, 8); short != nil {
		b = append(short, make([]byte, 56)...)
	}
	if len(bytes.Trim(b, "\x00")) == 0 {
		return nil
	}
	return b
}

func policyKeys() []attest.Key {
	flag := func(name string, field func(*attest.Rules) *bool) attest.Key {
		return attest.Key{Name: name, Kind: attest.KeyFlag, Direction: attest.GrantsIfTrue, Set: attest.SetField(field)}
	}
	hidden := flag("hidden_chips", func(r *attest.Rules) *bool { return &r.SNP.HiddenChips })
	hidden.Recorded = true
	return append(attest.RevocationKeys(),
		attest.Key{
			Name: "generation", Kind: attest.KeyNamed, Direction: attest.Grants, Required: true, Names: []string{milan, genoa, turin}, Named: generation,
			Set: func(r *attest.Rules, v any) {
				r.SNP.Generations = map[string]attest.SNPFloor{}
				for _, name := range v.([]string) {
					r.SNP.Generations[name] = attest.SNPFloor{}
				}
			},
		},
		attest.Key{
			Name: "chips", Kind: attest.KeyList, Direction: attest.Grants, Required: true, Recorded: true, Want: wantChip, Form: parseChip,
			Set: attest.SetField(func(r *attest.Rules) *attest.List { return &r.SNP.Chips }),
		},
		attest.Key{
			Name: "cut_chips", Kind: attest.KeyBytes, Direction: attest.Cuts, Recorded: true, Want: wantChip, Form: parseChip,
			Set: attest.SetField(func(r *attest.Rules) *[][]byte { return &r.SNP.CutChips }),
		},
		attest.Key{
			Name: "id_keys", Kind: attest.KeyList, Direction: attest.Grants, Required: true, Want: attest.WantSHA384, Form: attest.SHA384,
			Set: attest.SetField(func(r *attest.Rules) *attest.List { return &r.SNP.IDKeys }),
		},
		flag("smt", func(r *attest.Rules) *bool { return &r.SNP.SMT }),
		flag("migration", func(r *attest.Rules) *bool { return &r.SNP.Migration }),
		flag("provisional_firmware", func(r *attest.Rules) *bool { return &r.SNP.Provisional }),
		attest.Key{
			Name: "vmpl", Kind: attest.KeyNumber, Direction: attest.Ceiling, Most: 3,
			Set: attest.Narrowed(func(r *attest.Rules) *uint32 { return &r.SNP.VMPL }),
		},
		hidden,
		attest.Key{
			Name: attest.SNPPlatformInfo.Key, Kind: attest.KeyBits, Direction: attest.NarrowsBits, Optional: true, Field: attest.SNPPlatformInfo,
			Bits: func(r *attest.Rules) *attest.Bits { return &r.SNP.PlatformInfo },
		},
		attest.Key{
			Name: attest.SNPGuestPolicy.Key, Kind: attest.KeyBits, Direction: attest.NarrowsBits, Optional: true, Field: attest.SNPGuestPolicy,
			Bits: func(r *attest.Rules) *attest.Bits { return &r.SNP.GuestPolicy },
			Keys: []attest.Key{{
				Name: "abi", Kind: attest.KeyWord, Direction: attest.VersionFloor, Want: `a version such as "1.55"`,
				Is:  func(s string) bool { _, ok := version(s); return ok },
				Set: func(r *attest.Rules, v any) { r.SNP.GuestABI, _ = version(v.(string)) },
			}},
		},
		attest.Key{Name: "mitigations", Kind: attest.KeyTable, Optional: true, Keys: []attest.Key{
			{Name: "launch", Kind: attest.KeyBitNumbers, Direction: attest.Cuts, Set: attest.SetField(func(r *attest.Rules) *uint64 { return &r.SNP.LaunchMitigations })},
			{Name: "current", Kind: attest.KeyBitNumbers, Direction: attest.Cuts, Set: attest.SetField(func(r *attest.Rules) *uint64 { return &r.SNP.CurrentMitigations })},
		}},
	)
}

// generation are the keys of one CPU generation: floors of its firmware. Each names every
// component, so that none is forgotten.
func generation(name string) []attest.Key {
	floor := func(key string, required bool, of func(*attest.SNPFloor) *attest.SNPTCB) attest.Key {
		k := attest.Key{Name: key, Kind: attest.KeyTable, Direction: attest.Cuts, Required: required}
		component := func(key string, to func(*attest.SNPTCB) *uint8) {
			k.Keys = append(k.Keys, attest.Key{
				Name: key, Kind: attest.KeyNumber, Direction: attest.Floor, Required: true, Most: math.MaxUint8,
				Set: func(r *attest.Rules, v any) {
					f := r.SNP.Generations[name]
					*to(of(&f)) = uint8(v.(int64))
					r.SNP.Generations[name] = f
				},
			})
		}
		component("bootloader", func(t *attest.SNPTCB) *uint8 { return &t.Bootloader })
		component("tee", func(t *attest.SNPTCB) *uint8 { return &t.TEE })
		component("snp", func(t *attest.SNPTCB) *uint8 { return &t.SNP })
		component("microcode", func(t *attest.SNPTCB) *uint8 { return &t.Microcode })
		if name == turin {
			component("fmc", func(t *attest.SNPTCB) *uint8 { return &t.FMC })
		}
		return k
	}
	return []attest.Key{
		floor("committed", true, func(f *attest.SNPFloor) *attest.SNPTCB { return &f.Committed }),
		floor("reported", false, func(f *attest.SNPFloor) *attest.SNPTCB { return &f.Reported }),
		floor("launch", false, func(f *attest.SNPFloor) *attest.SNPTCB { return &f.Launch }),
	}
}

// version reads two numbers of a byte each, in their one spelling.
func version(s string) (v attest.SNPABI, ok bool) {
	major, minor, _ := strings.Cut(s, ".")
	for _, part := range []struct {
		text string
		to   *uint8
	}{{major, &v.Major}, {minor, &v.Minor}} {
		n, err := strconv.ParseUint(part.text, 10, 8)
		if err != nil || strconv.FormatUint(n, 10) != part.text {
			return attest.SNPABI{}, false
		}
		*part.to = uint8(n)
	}
	return v, true
}

func checkRules(r attest.Rules, has func(key string) bool) *attest.KeyFault {
	if r.SNP.HiddenChips && has("chips") && !r.SNP.Chips.Any {
		return &attest.KeyFault{Key: "hidden_chips", Rule: "chips", Got: "a list of chips", Want: `chips = "any": a chip whose id is hidden is on no list`}
	}
	return nil
}

func chipRefused(r attest.Rules, chipID string) string {
	id := parseChip(chipID)
	switch {
	case id == nil && (!r.SNP.HiddenChips || len(r.SNP.CutChips) > 0):
		return "hidden_chips"
	case attest.List{Values: r.SNP.CutChips}.Accepts(id):
		return "cut_chips"
	case !r.SNP.Chips.Accepts(id):
		return "chips"
	}
	return ""
}

func addWarnings(r attest.Rules, _ []attest.PlacedReference, add func(key, text string)) {
	if r.SNP.HiddenChips && len(r.SNP.CutChips) > 0 {
		add("hidden_chips", "void beside cut_chips: a chip whose id is hidden may be the one that is cut off, so none is accepted")
	} else if r.SNP.HiddenChips {
		add("hidden_chips", "a chip whose id is hidden cannot be cut off: only its provider's root, or a floor, can")
	}
	if r.SNP.Migration && len(r.SNP.CutChips) > 0 {
		add("cut_chips", "void for what moves there afterwards: migration = true lets a TEE change its chip until it renews")
	}
	for _, name := range slices.Sorted(maps.Keys(r.SNP.Generations)) {
		if r.SNP.Generations[name].Committed == (attest.SNPTCB{}) {
			add("generation."+name+".committed", "a floor of zeros refuses no firmware")
		}
	}
}
