package unitauth

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxIntroduction is the largest introduction, in bytes.
const maxIntroduction = 8 << 10

// Introduction is the id of a unit on a platform whose keys have no certificate, with the
// device and key that a client challenges. Nothing in it is checked: evidence of another
// device or key is refused.
type Introduction struct {
	Unit wire.UnitID
	attest.TPMKeys
}

// Encode returns Frame("cohort introduction v1", unit id, device, key).
func (i Introduction) Encode() []byte {
	return wire.Frame(wire.LabelIntroduction, i.Unit[:], i.Device, i.Key)
}

// UnverifiedIntroduction parses an introduction, unchecked.
func UnverifiedIntroduction(b []byte) (Introduction, error) {
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
	return Introduction{wire.UnitID(f[0]), attest.TPMKeys{Device: f[1], Key: f[2]}}, nil
}
