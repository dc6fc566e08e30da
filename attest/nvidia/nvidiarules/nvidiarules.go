// Package nvidiarules has the keys and registers that a policy file may name of NVIDIA GPUs.
package nvidiarules

import (
	"regexp"

	"github.com/cohort-tee/cohort/attest"
)

// Rules are those of [attest.NvidiaGPU], a device beside a TEE: it has no registers.
var Rules = attest.PolicyRules{
	Platform:    attest.NvidiaGPU,
	Keys:        policyKeys(),
	Note:        developmentNote,
	ChipRefused: attest.ListedChip(attest.SHA256, func(r attest.Rules) ([][]byte, attest.List) { return r.NVIDIA.CutChips, r.NVIDIA.Chips }),
}

var (
	model  = regexp.MustCompile(`^G[A-Z][0-9]{2}[0-9X]$`)
	driver = regexp.MustCompile(`^[0-9]+(\.[0-9]+)+$`)
	vbios  = regexp.MustCompile(`^[0-9A-F]{2}(\.[0-9A-F]{2}){4}$`)
)

// States are the words for whether a GPU's host can read it: it cannot, or it may.
const (
	production  = "production"
	development = "development"
)

// developmentNote states what the rules mean for GPUs in development mode, which no report excludes.
func developmentNote(r attest.Rules) string {
	if r.NVIDIA.Development {
		return "mode: a GPU in development mode, whose memory its host can read, is accepted"
	}
	return `mode: every GPU is refused, as nothing excludes development mode; mode = "development" accepts it`
}

func policyKeys() []attest.Key {
	wantModes, isMode := attest.OneOf("SPT", "MPT", "PPCIE", "unstated") // how GPUs are protected from one another
	_, isAny := attest.OneOf("any")
	_, isState := attest.OneOf(production, development)
	return append(attest.RevocationKeys(),
		attest.Key{
			Name: "models", Kind: attest.KeyWords, Direction: attest.Grants, Required: true, Want: "a model such as GH100", Is: model.MatchString,
			Set: attest.SetField(func(r *attest.Rules) *[]string { return &r.NVIDIA.Models }),
		},
		attest.Key{
			Name: "chips", Kind: attest.KeyList, Direction: attest.Grants, Required: true, Recorded: true, Want: attest.WantDigest, Form: attest.SHA256,
			Set: attest.SetField(func(r *attest.Rules) *attest.List { return &r.NVIDIA.Chips }),
		},
		attest.Key{
			Name: "cut_chips", Kind: attest.KeyBytes, Direction: attest.Cuts, Recorded: true, Want: attest.WantDigest, Form: attest.SHA256,
			Set: attest.SetField(func(r *attest.Rules) *[][]byte { return &r.NVIDIA.CutChips }),
		},
		attest.Key{
			Name: "drivers", Kind: attest.KeyList, Direction: attest.Grants, Required: true, Want: "a version such as 550.90.07", Form: attest.TextForm(driver.MatchString),
			Set: attest.SetField(func(r *attest.Rules) *attest.List { return &r.NVIDIA.Drivers }),
		},
		attest.Key{
			Name: "vbios", Kind: attest.KeyList, Direction: attest.Grants, Required: true, Want: "a version such as 96.00.9F.00.01", Form: attest.TextForm(vbios.MatchString),
			Set: attest.SetField(func(r *attest.Rules) *attest.List { return &r.NVIDIA.VBIOS }),
		},
		attest.Key{
			Name: "modes", Kind: attest.KeyWords, Direction: attest.Grants, Required: true, Want: wantModes, Is: isMode,
			Set: attest.SetField(func(r *attest.Rules) *[]string { return &r.NVIDIA.Modes }),
		},
		attest.Key{
			Name: "measurements", Kind: attest.KeyWord, Required: true, Want: `"any": nobody compares them`, Is: isAny,
			Set: func(r *attest.Rules, v any) { r.NVIDIA.AnyMeasurements = v.(string) == "any" },
		},
		attest.Key{
			Name: "mode", Kind: attest.KeyWord, Direction: attest.Loosest, Loosest: development, Want: production + " or " + development, Is: isState,
			Set: func(r *attest.Rules, v any) { r.NVIDIA.Development = v.(string) == development },
		},
	)
}
