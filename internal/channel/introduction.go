package channel

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxIntroduction is the largest introduction, in bytes.
const maxIntroduction = 8 << 10

// Introduction is a unit on a platform whose keys nobody certifies, and what a
// client challenges it by. Nothing in it is checked: evidence of another device
// or key is refused.
type Introduction struct {
	Unit wire.UnitID
	attest.Introduction
}

// Encode returns Frame("cohort introduction v1", unit id, device, key).
func (i Introduction) Encode() []byte {
	return wire.Frame(wire.LabelIntroduction, i.Unit[:], i.Device, i.Key)
}

func unverifiedIntroduction(b []byte) (Introduction, error) {
	if len(b) > maxIntroduction {
		return Introduction{}, wire.Refuse(wire.TooLarge, "introduction: size in bytes", len(b), maxIntroduction)
	}
	f, err := wire.Unframe(wire.LabelIntroduction, b, 3)
	if err != nil {
		return Introduction{}, err
	}
	if len(f[0]) != len(wire.UnitID{}) {
		return Introduction{}, wire.Refuse(wire.Malformed, "introduction: size of the unit id", len(f[0]), len(wire.UnitID{}))
	}
	return Introduction{wire.UnitID(f[0]), attest.Introduction{Device: f[1], Key: f[2]}}, nil
}

// Challenge challenges the unit that introduces itself: from then on only evidence of its
// device and key is accepted. The credential is for that unit.
func (o *Opening) Challenge(introduction []byte, verifier *attest.Verifier) (unit wire.UnitID, credential []byte, err error) {
	in, err := unverifiedIntroduction(introduction)
	if err != nil {
		return wire.UnitID{}, nil, err
	}
	challenge, err := verifier.Challenge(attest.TPM, in.Introduction)
	if err != nil {
		return wire.UnitID{}, nil, err
	}
	o.hidden = challenge.Hidden
	return in.Unit, challenge.Credential, nil
}

// Unchallenge forgets the unit that was challenged.
func (o *Opening) Unchallenge() { o.hidden = nil }
