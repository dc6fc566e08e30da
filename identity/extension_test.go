package identity

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

func softMeasurement(program byte) attest.Measurement {
	return attest.Measurement{Platform: attest.Soft, Registers: []attest.Register{
		{Name: "agent", Value: []byte{}, Any: true}, {Name: "program", Value: bytes.Repeat([]byte{program}, 32)}, {Name: "args", Value: []byte{}},
	}}
}

// goodExtensions has one for every kind.
func goodExtensions() map[Kind]extension {
	id, digest := wire.Sum([]byte("id")), wire.Sum([]byte("policy"))
	list := []attest.Measurement{softMeasurement(1), softMeasurement(2)}
	return map[Kind]extension{
		kindAuthorityRoot: {kind: kindAuthorityRoot, policy: digest},
		KindAuthority:     {kind: KindAuthority, policy: digest, development: true},
		kindIdentityRoot:  {kind: kindIdentityRoot, policy: digest, id: id, task: "scoring", measurements: list},
		kindCross:         {kind: kindCross, policy: digest, id: id, task: "scoring", measurements: list[:1]},
		KindShared:        {kind: KindShared, policy: digest, id: id, task: "scoring", keyMode: policy.Shared, development: true, debug: true},
		KindUnit:          {kind: KindUnit, policy: digest, id: id, task: "scoring", keyMode: policy.PerUnit, unit: wire.UnitID{1}, platform: attest.Soft, chip: "chip-7", debug: true},
		kindGroupRoot:     {kind: kindGroupRoot, policy: digest, id: id, task: "trial"},
		kindGroupCross:    {kind: kindGroupCross, policy: digest, id: id, task: "trial"},
		KindGroup:         {kind: KindGroup, policy: digest, id: id, task: "trial", keyMode: policy.Shared, role: "scorer", ends: noon},
	}
}

func TestExtensionRoundTrip(t *testing.T) {
	good := goodExtensions()
	if got, want := len(good), len(shapes); got != want {
		t.Fatalf("got %d kinds in the test, want all %d", got, want)
	}
	for kind, want := range good {
		der, err := want.encode()
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		got, err := parseExtension(der)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", kind, got, want)
		}
	}
}

// TestExtensionShapes changes one field of a good extension; neither writer nor
// reader takes it.
func TestExtensionShapes(t *testing.T) {
	tests := []struct {
		name string
		kind Kind
		edit func(*extension)
	}{
		{"no kind", KindUnit, func(e *extension) { e.kind = "" }},
		{"unknown kind", KindUnit, func(e *extension) { e.kind = "groups" }},
		{"no identity", KindShared, func(e *extension) { e.id = attest.Digest{} }},
		{"identity of an authority", KindAuthority, func(e *extension) { e.id = attest.Digest{1} }},
		{"no task", KindShared, func(e *extension) { e.task = "" }},
		{"task that is no name", KindShared, func(e *extension) { e.task = "a/b" }},
		{"task of an authority", KindAuthority, func(e *extension) { e.task = "scoring" }},
		{"no key mode", KindShared, func(e *extension) { e.keyMode = "" }},
		{"shared leaf in mode unit", KindShared, func(e *extension) { e.keyMode = policy.PerUnit }},
		{"unknown key mode", KindUnit, func(e *extension) { e.keyMode = "none" }},
		{"key mode of a CA", kindCross, func(e *extension) { e.keyMode = policy.Shared }},
		{"no policy", KindAuthority, func(e *extension) { e.policy = attest.Digest{} }},
		{"no unit", KindUnit, func(e *extension) { e.unit = wire.UnitID{} }},
		{"unit of a shared leaf", KindShared, func(e *extension) { e.unit = wire.UnitID{1} }},
		{"no platform", KindUnit, func(e *extension) { e.platform = "" }},
		{"platform of a shared leaf", KindShared, func(e *extension) { e.platform = attest.Soft }},
		{"chip of a shared leaf", KindShared, func(e *extension) { e.chip = "c" }},
		{"long chip", KindUnit, func(e *extension) { e.chip = strings.Repeat("c", maxChip+1) }},
		{"no measurements", kindCross, func(e *extension) { e.measurements = nil }},
		{"measurements of a unit", KindUnit, func(e *extension) { e.measurements = []attest.Measurement{softMeasurement(1)} }},
		{"no role", KindGroup, func(e *extension) { e.role = "" }},
		{"role that is no name", KindGroup, func(e *extension) { e.role = "a b" }},
		{"no end", KindGroup, func(e *extension) { e.ends = time.Time{} }},
		{"measurements of a group", kindGroupCross, func(e *extension) { e.measurements = []attest.Measurement{softMeasurement(1)} }},
		{"unit without a platform in a group", KindGroup, func(e *extension) { e.unit = wire.UnitID{1} }},
		{"unsorted measurements", kindIdentityRoot, func(e *extension) {
			e.measurements = []attest.Measurement{softMeasurement(2), softMeasurement(1)}
		}},
		{"more than 32 KiB", kindCross, func(e *extension) {
			for i := range 256 {
				m := softMeasurement(byte(i))
				m.Registers[2].Value = make([]byte, 64)
				e.measurements = append(e.measurements, m)
			}
			e.measurements = sorted(e.measurements)
		}},
		{"a measurement twice", kindIdentityRoot, func(e *extension) {
			e.measurements = []attest.Measurement{softMeasurement(1), softMeasurement(1)}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := goodExtensions()[tt.kind]
			tt.edit(&e)
			_, err := e.encode()
			refused(t, err, wire.NoExtension)
			_, err = parseExtension(e.unchecked())
			refused(t, err, wire.NoExtension)
		})
	}
}

// unchecked is the encoding of e, whatever its shape.
func (e extension) unchecked() []byte {
	fields := e.fields()
	return must(asn1.Marshal(wire.Frame(wire.LabelExtension, fields...)))
}

func TestExtensionEncodings(t *testing.T) {
	good := goodExtensions()[KindUnit]
	fields := func(edit func([][]byte) [][]byte) []byte {
		return must(asn1.Marshal(wire.Frame(wire.LabelExtension, edit(good.fields())...)))
	}
	der := must(good.encode())
	set := func(i int, v []byte) func([][]byte) [][]byte {
		return func(f [][]byte) [][]byte { f[i] = v; return f }
	}
	tests := []struct {
		name string
		der  []byte
	}{
		{"nothing", nil},
		{"no octet string", wire.Frame(wire.LabelExtension, good.fields()...)},
		{"trailing byte", append(bytes.Clone(der), 0)},
		{"cut", der[:len(der)-1]},
		{"another label", must(asn1.Marshal(wire.Frame(wire.LabelIdentity, good.fields()...)))},
		{"a field less", fields(func(f [][]byte) [][]byte { return f[:8] })},
		{"a field more", fields(func(f [][]byte) [][]byte { return append(f, []byte("x")) })},
		{"short identity", fields(set(1, good.id[:31]))},
		{"long identity", fields(set(1, append(good.id[:], 0)))},
		{"long policy", fields(set(4, append(good.policy[:], 0)))},
		{"another mark", fields(set(5, []byte("yes")))},
		{"long unit", fields(set(6, append(good.unit[:], 0)))},
		{"too long", must(asn1.Marshal(make([]byte, maxExtension)))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseExtension(tt.der)
			refused(t, err, wire.NoExtension)
		})
	}
}

func TestExtensionOf(t *testing.T) {
	value := must(goodExtensions()[KindUnit].encode())
	ours := pkix.Extension{Id: extensionOID, Value: value}
	critical := ours
	critical.Critical = true
	if _, err := extensionOf(&x509.Certificate{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 25, 1}}, ours}}); err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]pkix.Extension{nil, {critical}} {
		_, err := extensionOf(&x509.Certificate{Extensions: list})
		refused(t, err, wire.NoExtension)
	}
}

func FuzzExtension(f *testing.F) {
	for _, e := range goodExtensions() {
		f.Add(must(e.encode()))
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		e, err := parseExtension(der)
		if err != nil {
			if got := wire.ReasonOf(err); got != wire.NoExtension {
				t.Fatalf("got reason %q, want %q", got, wire.NoExtension)
			}
			return
		}
		if again := must(e.encode()); !bytes.Equal(again, der) {
			t.Fatalf("got %x, want %x", again, der)
		}
	})
}

// TestGroupExtensionVector: the bytes of a group's extension never change.
func TestGroupExtensionVector(t *testing.T) {
	const want = "0481a015636f686f72742063657274696669636174652076310000000567726f757000000020a56145270ce6b3bebd1dd012b73948677dd618d496488bc608a3cb43ce3547dd00000005747269616c0000000673686172656400000020823412d1eacb67956220e532959f0104603057c88704863ca38e7cd188fda812000000000000000000000000000000000000000673636f72657200000008000000006b02d940"
	if got := hex.EncodeToString(must(goodExtensions()[KindGroup].encode())); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}
