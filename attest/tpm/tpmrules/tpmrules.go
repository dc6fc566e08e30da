// Package tpmrules has the keys and registers that a policy file may name of TPMs.
package tpmrules

import (
	"slices"

	"github.com/cohort-tee/cohort/attest"
)

// Rules are those of [attest.TPM].
var Rules = attest.PolicyRules{
	Platform: attest.TPM,
	Registers: slices.Concat(attest.PCRRegisters(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14), []attest.RegisterForm{
		{Name: "agent"}, {Name: "program", Form: attest.FormNeededDigest}, {Name: "args", Form: attest.FormArguments},
	}),
	Keys: []attest.Key{{
		Name: "cut_chips", Kind: attest.KeyBytes, Direction: attest.Cuts, Recorded: true, Want: attest.WantDigest, Form: attest.SHA256,
		Set: attest.SetField(func(r *attest.Rules) *[][]byte { return &r.TPM.CutChips }),
	}},
	Launches:      func(r *attest.Rules) *[]attest.ReferenceValue { return &r.TPM.Launches },
	SealsToOthers: true,
	Chip:          parseChip,
	ChipRefused:   attest.ListedChip(parseChip, func(r attest.Rules) ([][]byte, attest.List) { return r.TPM.CutChips, attest.List{Any: true} }),
}

// parseChip reads a device by the digits of the SHA-256 of its endorsement key.
func parseChip(s string) []byte { return attest.Digits(s, 32) }
