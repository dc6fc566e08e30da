package policy

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Grant is what policy gives an attested unit.
type Grant struct {
	Task    *Task
	Release *Release
	Result  attest.Result
}

// Admit matches an attestation result with the releases of a task. It refuses
// with "not-found" for an unknown task and with "measurement", naming got and
// want of the nearest reference value, when no release matches; a program that
// loads unmeasured libraries is refused unless its release says dynamic.
func (a Approved) Admit(task string, result attest.Result) (Grant, error) {
	if err := a.admissible(result); err != nil {
		return Grant{}, err
	}
	t := a.doc.Tasks[task]
	if t == nil {
		return Grant{}, wire.Refuse(wire.NotFound, "admission: task", task, "a task of the policy")
	}
	var all []attest.ReferenceValue
	for _, name := range t.ReleaseNames() {
		release := t.Releases[name]
		if match(release.References, result) != nil {
			all = append(all, release.References...)
			continue
		}
		if result.Dynamic() && !release.Dynamic {
			return Grant{}, wire.Refuse(wire.NotMeasured, "admission: libraries", "a program that loads unmeasured libraries", "a static one, or dynamic = true in release "+name)
		}
		return Grant{Task: t, Release: release, Result: result}, nil
	}
	return Grant{}, match(all, result)
}

// AdmitAuthority matches a result with the authority's reference values. An
// authority never loads unmeasured libraries.
func (a Approved) AdmitAuthority(result attest.Result) error {
	if err := a.admissible(result); err != nil {
		return err
	}
	if result.Dynamic() {
		return wire.Refuse(wire.NotMeasured, "admission: libraries", "an authority that loads unmeasured libraries", "a static one")
	}
	return match(a.doc.Authority.References, result)
}

// admissible refuses the zero Approved and the zero result.
func (a Approved) admissible(result attest.Result) error {
	if !a.OK() {
		return errNothing
	}
	if !result.OK() {
		return wire.Refuse(wire.NotMeasured, "admission: attestation result", "none", "an appraised one")
	}
	return nil
}

// match is nil when one of the reference values is the result's measurement,
// and else the refusal of the nearest: that with the most equal registers.
func match(refs []attest.ReferenceValue, result attest.Result) error {
	got := result.Measurement()
	nearest := wire.Refuse(wire.NotMeasured, "measurement", got, "a reference value of the policy")
	best := -1
	for _, ref := range refs {
		err := attest.Match(ref, got)
		if err == nil {
			return nil
		}
		if n := agreement(ref, got); n > best {
			nearest, best = err, n
		}
	}
	return nearest
}

// agreement counts the registers that agree; -1 is another platform.
func agreement(ref attest.ReferenceValue, got attest.Measurement) int {
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
