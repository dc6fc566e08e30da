package policyfile

import (
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// Machines are the machines that may have the authority's root (key "machines" of
// [authority]). The zero Machines are none.
type Machines struct {
	// Any accepts every machine of the platforms: an attacker who can forge the evidence of
	// one chip gets the root.
	Any   bool
	Chips []string // as `cohort evidence inspect` prints them
}

// chipPrefix begins a machine in a policy file.
const chipPrefix = "chip:"

// readMachines reads "any" or a list of machines. Each must have the form of a chip of a
// platform of the authority's reference values.
func readMachines(t policytoml.Table, references []attest.ReferenceValue) Machines {
	const key = "machines"
	if _, word := t.Values[key].(string); word {
		return Machines{Any: t.ReadText(key, `"any", or a list`, policytoml.OneOf([]string{anyWord})) == anyWord}
	}
	var m Machines
	want := `"chip:" and the id of a chip, as ` + "`cohort evidence inspect`" + ` prints it, of a platform of authority.reference`
	for _, s := range t.ReadSet(key, want, func(s string) bool { return machineOK(s, references) }) {
		m.Chips = append(m.Chips, strings.TrimPrefix(s, chipPrefix))
	}
	if t.HasKey(key) && len(m.Chips) == 0 {
		t.AddFault(key, "number of machines", 0, `at least 1, or "any"`)
	}
	return m
}

func machineOK(s string, references []attest.ReferenceValue) bool {
	chip, ok := strings.CutPrefix(s, chipPrefix)
	return ok && slices.ContainsFunc(references, func(r attest.ReferenceValue) bool {
		p, _ := known.lookup(r.Platform)
		return p.Chip != nil && p.Chip(chip) != nil
	})
}

// admit refuses, with "wrong-chip", the result of a machine that is not in the list.
func (m Machines) admit(result attest.Result) error {
	if m.Any {
		return nil
	}
	p, _ := known.lookup(result.Measurement().Platform)
	if p.Chip != nil {
		got := p.Chip(result.ChipID())
		if got != nil && slices.ContainsFunc(m.Chips, func(chip string) bool { return string(p.Chip(chip)) == string(got) }) {
			return nil
		}
	}
	return wire.Refuse(wire.WrongChip, "admission: machine of the authority", result.ChipID(), "one of authority.machines: "+m.String())
}

// String returns "any", or the chips.
func (m Machines) String() string {
	if m.Any {
		return anyWord
	}
	return strings.Join(m.Chips, ", ")
}
