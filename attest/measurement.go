package attest

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Register is one register that names code or configuration. In a reference
// value, Any states that every value is accepted; it is then part of the tuple
// and so of the identity.
type Register struct {
	Name  string
	Value []byte
	Any   bool
}

// Measurement is the tuple of all registers of one platform, in the order of
// [PolicyRules.Registers]. As part of a [Result] it holds values only; as a reference
// value it may hold Any.
type Measurement struct {
	Platform  Platform
	Registers []Register
}

// ReferenceValue is a measurement that policy accepts.
type ReferenceValue = Measurement

// Bytes is the canonical framing of the tuple, equal exactly when the tuples
// are equal.
func (m Measurement) Bytes() []byte {
	fields := [][]byte{[]byte(m.Platform)}
	for _, r := range m.Registers {
		kind := []byte("is")
		if r.Any {
			kind = []byte("any")
		}
		fields = append(fields, wire.Frame(wire.LabelRegister, []byte(r.Name), kind, r.Value))
	}
	return wire.Frame(wire.LabelMeasurement, fields...)
}

// ParseMeasurement is the inverse of Bytes. Its error has the reason
// "malformed".
func ParseMeasurement(b []byte) (Measurement, error) {
	fields, err := wire.Unframe(wire.LabelMeasurement, b, -1)
	if err != nil {
		return Measurement{}, err
	}
	if len(fields) < 2 {
		return Measurement{}, wire.Refuse(wire.Malformed, "measurement: registers", 0, "at least one")
	}
	m := Measurement{Platform: Platform(fields[0])}
	for _, f := range fields[1:] {
		parts, err := wire.Unframe(wire.LabelRegister, f, 3)
		if err != nil {
			return Measurement{}, err
		}
		r := Register{Name: string(parts[0]), Value: slices.Clone(parts[2])}
		switch string(parts[1]) {
		case "is":
		case "any":
			r.Any = true
		default:
			return Measurement{}, wire.Refuse(wire.Malformed, "measurement: register "+r.Name, string(parts[1]), "is or any")
		}
		if r.Any && len(r.Value) > 0 {
			return Measurement{}, wire.Refuse(wire.Malformed, "measurement: register "+r.Name, "any with a value", "any alone")
		}
		m.Registers = append(m.Registers, r)
	}
	return m, nil
}

// Compare orders measurements by their canonical bytes.
func (m Measurement) Compare(other Measurement) int {
	return bytes.Compare(m.Bytes(), other.Bytes())
}

// String is a short line for people: the platform and each register.
func (m Measurement) String() string {
	var b strings.Builder
	b.WriteString(string(m.Platform))
	for _, r := range m.Registers {
		fmt.Fprintf(&b, " %s=%s", r.Name, r.valueText())
	}
	return b.String()
}

func (r Register) valueText() string {
	switch {
	case r.Any:
		return "any"
	case len(r.Value) == 0:
		return "none"
	case len(r.Value) == len(Digest{}):
		return Digest(r.Value).String()
	}
	return hex.EncodeToString(r.Value)
}

// Match refuses, with reason "measurement" and both values of the first
// register that differs, a measurement that is not the reference value's.
func Match(reference ReferenceValue, got Measurement) error {
	if reference.Platform != got.Platform {
		return wire.Refuse(wire.NotMeasured, "measurement: platform", got.Platform, reference.Platform)
	}
	if len(reference.Registers) == 0 || len(reference.Registers) != len(got.Registers) {
		return wire.Refuse(wire.NotMeasured, "measurement: number of registers", len(got.Registers), len(reference.Registers))
	}
	for i, want := range reference.Registers {
		have := got.Registers[i]
		if have.Name != want.Name || have.Any {
			return wire.Refuse(wire.NotMeasured, "measurement: register", have.Name, want.Name)
		}
		if !want.Any && !bytes.Equal(have.Value, want.Value) {
			return wire.Refuse(wire.NotMeasured, "measurement: "+want.Name, have.valueText(), want.valueText())
		}
	}
	return nil
}
