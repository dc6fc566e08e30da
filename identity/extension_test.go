package identity

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

func softMeasurement(program byte) attest.Measurement {
	return attest.Measurement{Platform: attest.Soft, Registers: []attest.Register{
		{Name: "agent", Value: []byte{}, Any: true}, {Name: "program", Value: bytes.Repeat([]byte{program}, 32)}, {Name: "args", Value: []byte{}},
	}}
}

// goodExtensions returns an extension for every kind.
func goodExtensions() map[Kind]extension {
	id, digest := wire.Sum([]byte("id")), wire.Sum([]byte("head"))
	list := []attest.Measurement{softMeasurement(1), softMeasurement(2)}
	return map[Kind]extension{
		kindAuthorityRoot: {kind: kindAuthorityRoot, head: digest},
		KindAuthority:     {kind: KindAuthority, head: digest, development: true},
		kindIdentityRoot:  {kind: kindIdentityRoot, head: digest, id: id, task: "scoring", measurements: list},
		kindCross:         {kind: kindCross, head: digest, id: id, task: "scoring", measurements: list[:1]},
		KindShared:        {kind: KindShared, head: digest, id: id, task: "scoring", keyMode: policyfile.Shared, development: true, debug: true},
		KindUnit:          {kind: KindUnit, head: digest, id: id, task: "scoring", keyMode: policyfile.PerUnit, unit: wire.UnitID{1}, platform: attest.Soft, chip: "chip-7", debug: true},
		kindGroupRoot:     {kind: kindGroupRoot, head: digest, id: id, task: "trial"},
		kindGroupBus:      {kind: kindGroupBus, head: digest, id: id, task: "trial"},
		KindGroup:         {kind: KindGroup, id: id, task: "trial", keyMode: policyfile.Shared, role: "scorer", ends: noon},
	}
}

// ofMember returns the extension of a unit in a group.
func ofMember() extension {
	e := goodExtensions()[KindGroup]
	e.head, e.unit, e.platform, e.chip = wire.Sum([]byte("head")), wire.UnitID{1}, attest.Soft, "chip-7"
	e.member = member{task: "scoring", release: "2026.11", party: wire.Sum([]byte("party"))}
	return e
}

// ofGroupAuthority returns the extension of an authority's leaf for a group.
func ofGroupAuthority() extension {
	e := goodExtensions()[KindAuthority]
	e.id, e.task = wire.Sum([]byte("roster")), "trial"
	return e
}

// TestExtensionName: the object identifier is Microsoft's arc for UUIDs with a random UUID
// (RFC 9562, version 4), and X.509 libraries that limit arcs to 31 bits can parse it.
func TestExtensionName(t *testing.T) {
	const arc = "1.2.840.113556.1.8000.2554."
	text, under := strings.CutPrefix(extensionOID.String(), arc)
	if !under || len(extensionOID) != 14 {
		t.Fatalf("got %s, want 7 parts under %s", extensionOID, arc)
	}
	var uuid string
	for i, part := range extensionOID[7:] {
		digits := 4
		if i > 4 {
			digits = 6
		}
		uuid += fmt.Sprintf("%0*x", digits, part)
	}
	b, err := hex.DecodeString(uuid)
	if err != nil || len(b) != 16 || b[6]>>4 != 4 || b[8]>>6 != 2 {
		t.Errorf("got %s from %s, want a UUID of version 4: %v", uuid, text, err)
	}
	if want := "caba14821bf44a3fbe22a69bf4f509e1"; uuid != want {
		t.Errorf("got UUID %s, want that of docs/spec/identity.md, %s", uuid, want)
	}
}

func TestExtensionRoundTrip(t *testing.T) {
	good := goodExtensions()
	if got, want := len(good), len(shapes); got != want {
		t.Fatalf("got %d kinds in the test, want all %d", got, want)
	}
	all := append(slices.Collect(maps.Values(good)), ofMember(), ofGroupAuthority())
	for _, want := range all {
		kind := want.kind
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

// TestExtensionShapes changes one field of a good extension. Neither the encoder nor the parser
// accepts it.
func TestExtensionShapes(t *testing.T) {
	tests := []struct {
		name string
		kind Kind
		edit func(*extension)
	}{
		{"no kind", KindUnit, func(e *extension) { e.kind = "" }},
		{"unknown kind", KindUnit, func(e *extension) { e.kind = "groups" }},
		{"no identity", KindShared, func(e *extension) { e.id = attest.Digest{} }},
		{"identity of an authority without a name", KindAuthority, func(e *extension) { e.id = attest.Digest{1} }},
		{"no task", KindShared, func(e *extension) { e.task = "" }},
		{"task that is no name", KindShared, func(e *extension) { e.task = "a/b" }},
		{"task of an authority", KindAuthority, func(e *extension) { e.task = "scoring" }},
		{"no key mode", KindShared, func(e *extension) { e.keyMode = "" }},
		{"shared leaf in mode unit", KindShared, func(e *extension) { e.keyMode = policyfile.PerUnit }},
		{"unknown key mode", KindUnit, func(e *extension) { e.keyMode = "none" }},
		{"key mode of a CA", kindCross, func(e *extension) { e.keyMode = policyfile.Shared }},
		{"no head", KindAuthority, func(e *extension) { e.head = attest.Digest{} }},
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
		{"measurements of a group", kindGroupBus, func(e *extension) { e.measurements = []attest.Measurement{softMeasurement(1)} }},
		{"unit without a platform in a group", KindGroup, func(e *extension) { *e = ofMember(); e.platform = "" }},
		{"unit without a member in a group", KindGroup, func(e *extension) { *e = ofMember(); e.member = member{} }},
		{"unit without a head in a group", KindGroup, func(e *extension) { *e = ofMember(); e.head = attest.Digest{} }},
		{"unit without a head", KindUnit, func(e *extension) { e.head = attest.Digest{} }},
		{"member without a task", KindGroup, func(e *extension) { *e = ofMember(); e.member.task = "" }},
		{"member whose task is no name", KindGroup, func(e *extension) { *e = ofMember(); e.member.task = "a/b" }},
		{"member without a release", KindGroup, func(e *extension) { *e = ofMember(); e.member.release = "" }},
		{"member without a party", KindGroup, func(e *extension) { *e = ofMember(); e.member.party = attest.Digest{} }},
		{"member of a pair", KindGroup, func(e *extension) { e.member = ofMember().member }},
		{"pair of a group in mode unit", KindGroup, func(e *extension) { e.keyMode = policyfile.PerUnit }},
		{"unsorted measurements", kindIdentityRoot, func(e *extension) {
			e.measurements = []attest.Measurement{softMeasurement(2), softMeasurement(1)}
		}},
		{"more than 32 KiB", kindCross, func(e *extension) {
			for i := range 256 {
				m := softMeasurement(byte(i))
				m.Registers[2].Value = make([]byte, 64)
				e.measurements = append(e.measurements, m)
			}
			e.measurements = policyfile.SortedMeasurements(e.measurements)
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
			testworld.Refused(t, err, wire.NoExtension)
			_, err = parseExtension(e.unchecked())
			testworld.Refused(t, err, wire.NoExtension)
		})
	}
}

// unchecked returns the encoding of e without checking its fields.
func (e extension) unchecked() []byte {
	fields := e.fields()
	return testworld.Must(asn1.Marshal(wire.Frame(wire.LabelExtension, fields...)))
}

func TestExtensionEncodings(t *testing.T) {
	good := goodExtensions()[KindUnit]
	fields := func(edit func([][]byte) [][]byte) []byte {
		return testworld.Must(asn1.Marshal(wire.Frame(wire.LabelExtension, edit(good.fields())...)))
	}
	der := testworld.Must(good.encode())
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
		{"another label", testworld.Must(asn1.Marshal(wire.Frame(wire.LabelIdentity, good.fields()...)))},
		{"a field less", fields(func(f [][]byte) [][]byte { return f[:8] })},
		{"a field more", fields(func(f [][]byte) [][]byte { return append(f, []byte("x")) })},
		{"short identity", fields(set(1, good.id[:31]))},
		{"long identity", fields(set(1, append(good.id[:], 0)))},
		{"long head", fields(set(4, append(good.head[:], 0)))},
		{"another mark", fields(set(5, []byte("yes")))},
		{"long unit", fields(set(6, append(good.unit[:], 0)))},
		{"too long", testworld.Must(asn1.Marshal(make([]byte, maxExtension)))},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseExtension(tt.der)
			testworld.Refused(t, err, wire.NoExtension)
		})
	}
}

func TestExtensionOf(t *testing.T) {
	value := testworld.Must(goodExtensions()[KindUnit].encode())
	ours := pkix.Extension{Id: extensionOID, Value: value}
	critical := ours
	critical.Critical = true
	if _, err := extensionOf(&x509.Certificate{Extensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 25, 1}}, ours}}); err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]pkix.Extension{nil, {critical}} {
		_, err := extensionOf(&x509.Certificate{Extensions: list})
		testworld.Refused(t, err, wire.NoExtension)
	}
}

func FuzzExtension(f *testing.F) {
	for _, e := range goodExtensions() {
		f.Add(testworld.Must(e.encode()))
	}
	f.Add(testworld.Must(ofMember().encode()))
	f.Add(testworld.Must(ofGroupAuthority().encode()))
	f.Fuzz(func(t *testing.T, der []byte) {
		e, err := parseExtension(der)
		if err != nil {
			if got := wire.ReasonOf(err); got != wire.NoExtension {
				t.Fatalf("got reason %q, want %q", got, wire.NoExtension)
			}
			return
		}
		if again := testworld.Must(e.encode()); !bytes.Equal(again, der) {
			t.Fatalf("got %x, want %x", again, der)
		}
	})
}

// TestGroupExtensionVector: the bytes of a group's extension never change.
func TestGroupExtensionVector(t *testing.T) {
	for _, tt := range []struct {
		name string
		e    extension
		want string
	}{
		{"pair of a role", goodExtensions()[KindGroup], "0481a015636f686f72742063657274696669636174652076310000000567726f757000000020a56145270ce6b3bebd1dd012b73948677dd618d496488bc608a3cb43ce3547dd00000005747269616c00000006736861726564000000200000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000673636f72657200000008000000006b02d940"},
		{"unit", ofMember(), "0481f415636f686f72742063657274696669636174652076310000000567726f757000000020a56145270ce6b3bebd1dd012b73948677dd618d496488bc608a3cb43ce3547dd00000005747269616c00000006736861726564000000209f2e6d33a3717ee826353a404ba4618d1aeeb6879ad7936bce8ed5f46814924d00000000000000100100000000000000000000000000000000000004736f667400000006636869702d370000000673636f72657200000008000000006b02d9400000000773636f72696e6700000007323032362e3131000000201d0fea39ec33ff7543f345be85d1ccd34d6d864297d4151b737802cb294a338c"},
		{"authority of a group", ofGroupAuthority(), "04819315636f686f727420636572746966696361746520763100000009617574686f7269747900000020c6836f7ad1c4da8a997c009a4b4b120c237b1993693239e194d6307d9d0b8c3a00000005747269616c00000000000000209f2e6d33a3717ee826353a404ba4618d1aeeb6879ad7936bce8ed5f46814924d0000000b646576656c6f706d656e74000000000000000000000000"},
	} {
		if got := hex.EncodeToString(testworld.Must(tt.e.encode())); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}
