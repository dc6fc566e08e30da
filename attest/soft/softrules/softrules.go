// Package softrules has the keys and registers that a policy file may name of the development TEE.
package softrules

import "github.com/cohort-tee/cohort/attest"

// Rules are those of [attest.Soft].
var Rules = attest.PolicyRules{
	Platform:    attest.Soft,
	Development: true,
	Registers:   []attest.RegisterForm{{Name: "agent"}, {Name: "program", Form: attest.FormNeededDigest}, {Name: "args", Form: attest.FormArguments}},
	Keys: []attest.Key{{
		Name: "cut_chips", Kind: attest.KeyBytes, Direction: attest.Cuts, Recorded: true, Want: "16 lower-case hexadecimal digits", Form: parseChip,
		Set: attest.SetField(func(r *attest.Rules) *[][]byte { return &r.Soft.CutChips }),
	}},
	SealsToOthers: true,
	Chip:          parseChip,
	ChipRefused:   attest.ListedChip(parseChip, func(r attest.Rules) ([][]byte, attest.List) { return r.Soft.CutChips, attest.List{Any: true} }),
}

func parseChip(s string) []byte { return attest.Digits(s, 8) }
