package unitauth

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// maxIntroduction is the maximum size of an introduction, in bytes.
const maxIntroduction = 8 << 10

// Introduction is the message of a unit on a platform where no vendor certifies the key that
// signs evidence, such as a TPM. It contains the unit's id, and the device and key that the
// client challenges. It is unverified: later the client refuses evidence that is not of this
// device and key.
type Introduction struct {
	Unit wire.UnitID
	attest.TPMKeys
}

// Encode returns Frame("cohort introduction v1", unit id, device, key).
func (i Introduction) Encode() []byte {
	return wire.Frame(wire.LabelIntroduction, i.Unit[:], i.Device, i.Key)
}

// UnverifiedIntroduction parses an introduction. It verifies only sizes.
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
