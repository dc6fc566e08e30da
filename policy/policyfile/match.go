package policyfile

import (
	"fmt"
	"maps"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Equipped refuses, with "device-missing", a unit with fewer devices of a platform than
// the release requires.
func (r *Release) Equipped(devices []attest.Device) error {
	have := map[attest.Platform]int{}
	for _, d := range devices {
		have[d.Platform]++
	}
	for _, p := range slices.Sorted(maps.Keys(r.Devices)) {
		if have[p] < r.Devices[p] {
			return wire.Refuse(wire.DeviceMissing, "admission: devices of platform "+string(p), have[p], fmt.Sprintf("at least %d, by release %s", r.Devices[p], r.Name))
		}
	}
	return nil
}

// Admit refuses a program that loads unmeasured libraries, unless the release has dynamic
// = true, and one without a required device.
func (r *Release) Admit(result attest.Result) error {
	if result.Dynamic() && !r.Dynamic {
		return wire.Refuse(wire.NotMeasured, "admission: libraries", "a program that loads unmeasured libraries", "a static one, or dynamic = true in release "+r.Name)
	}
	return r.Equipped(result.Devices())
}

// Admit matches a result with the authority's reference values and machines.
func (a Authority) Admit(result attest.Result) error {
	return admitAuthority(a.References, a.Machines, result)
}

// Admit matches a result with the authorities that may have the group's root.
func (c Custody) Admit(result attest.Result) error {
	return admitAuthority(c.References, c.Machines, result)
}

// admitAuthority matches a result with the reference values and the machines of
// authorities.
func admitAuthority(references []attest.ReferenceValue, machines Machines, result attest.Result) error {
	if err := CheckAppraised(result); err != nil {
		return err
	}
	if result.Dynamic() {
		return wire.Refuse(wire.NotMeasured, "admission: libraries", "an authority that loads unmeasured libraries", "a static one")
	}
	if err := Match(references, result.Measurement()); err != nil {
		return err
	}
	return machines.admit(result)
}

// CheckAppraised refuses the zero result.
func CheckAppraised(result attest.Result) error {
	if !result.Appraised() {
		return wire.Refuse(wire.NotMeasured, "admission: attestation result", "the zero result", "an appraised one")
	}
	return nil
}

// Match returns nil if the measurement matches one of the reference values. Otherwise it
// returns the refusal of the reference value with the most equal registers.
func Match(refs []attest.ReferenceValue, got attest.Measurement) error {
	nearest := wire.Refuse(wire.NotMeasured, "measurement", got, "a reference value of the policy")
	best := -1
	for _, ref := range refs {
		err := attest.Match(ref, got)
		if err == nil {
			return nil
		}
		if n := equalRegisters(ref, got); n > best {
			nearest, best = err, n
		}
	}
	return nearest
}

// equalRegisters counts the registers that are equal. It returns -1 for another platform.
func equalRegisters(ref attest.ReferenceValue, got attest.Measurement) int {
	if ref.Platform != got.Platform {
		return -1
	}
	n := 0
	for i, r := range ref.Registers {
		if i < len(got.Registers) && (r.Any || string(r.Value) == string(got.Registers[i].Value)) {
			n++
		}
	}
	return n
}
