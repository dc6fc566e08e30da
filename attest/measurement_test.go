package attest_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// tuple returns a measurement of the registers a, b, … with these values; "*" means any.
func tuple(values ...string) attest.Measurement {
	m := attest.Measurement{Platform: attest.Soft}
	for i, v := range values {
		r := attest.Register{Name: string(rune('a' + i)), Value: []byte(v)}
		if v == "*" {
			r = attest.Register{Name: r.Name, Any: true}
		}
		m.Registers = append(m.Registers, r)
	}
	return m
}

func on(p attest.Platform, m attest.Measurement) attest.Measurement {
	m.Platform = p
	return m
}

func named(name string, m attest.Measurement) attest.Measurement {
	m.Registers = slices.Clone(m.Registers)
	m.Registers[0].Name = name
	return m
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		name      string
		reference attest.ReferenceValue
		got       attest.Measurement
		ok        bool
	}{
		{"equal", tuple("1", "2"), tuple("1", "2"), true},
		{"equal, one empty", tuple("", "2"), tuple("", "2"), true},
		{"any", tuple("1", "*"), tuple("1", "2"), true},
		{"any, empty", tuple("1", "*"), tuple("1", ""), true},
		{"one differs", tuple("1", "2"), tuple("1", "3"), false},
		{"any, another differs", tuple("1", "*"), tuple("2", "2"), false},
		{"swapped", tuple("1", "2"), tuple("2", "1"), false},
		{"prefix", tuple("1", "2"), tuple("1", "22"), false},
		{"empty in the reference is no any", tuple("", "2"), tuple("1", "2"), false},
		{"empty in the measurement", tuple("1", "2"), tuple("", "2"), false},
		{"any in the measurement", tuple("1", "2"), tuple("1", "*"), false},
		{"any in both", tuple("1", "*"), tuple("1", "*"), false},
		{"register missing", tuple("1", "2"), tuple("1"), false},
		{"register too many", tuple("1"), tuple("1", "2"), false},
		{"another register", named("z", tuple("1", "2")), tuple("1", "2"), false},
		{"another register, any", named("z", tuple("*", "2")), tuple("1", "2"), false},
		{"another platform", on(attest.TPM, tuple("1", "2")), tuple("1", "2"), false},
		{"both empty", attest.Measurement{}, attest.Measurement{}, false},
		{"reference without registers", tuple(), tuple(), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := attest.Match(c.reference, c.got)
			if c.ok && err != nil {
				t.Errorf("got %v, want a match", err)
			}
			if !c.ok && !errors.Is(err, wire.NotMeasured) {
				t.Errorf("got %v, want %v", err, wire.NotMeasured)
			}
		})
	}
}

func TestMismatchNamesGotAndWant(t *testing.T) {
	want, got := attesttest.Measure("good"), attesttest.Measure("evil")
	var r *attest.Refusal
	if err := attest.Match(want, got); !errors.As(err, &r) {
		t.Fatalf("got %v, want a refusal", err)
	}
	if r.Rule != "measurement: program" || r.Got != wire.Sum([]byte("evil")).String() || r.Want != wire.Sum([]byte("good")).String() {
		t.Errorf("got %+v", r)
	}
}

func TestMeasurementRoundTrip(t *testing.T) {
	all := []attest.Measurement{
		tuple("1"), tuple("*"), tuple(""), tuple("1", "2", "3"), tuple("1", "*", ""), on("", tuple("1")),
		attesttest.Measure("scoring"), attesttest.Measure("scoring", "x"), attesttest.Measure("keys"),
	}
	for i, want := range all {
		got, err := attest.ParseMeasurement(want.Bytes())
		if err != nil || !bytes.Equal(got.Bytes(), want.Bytes()) || got.Platform != want.Platform {
			t.Errorf("%v: got %v, %v", want, got, err)
		}
		for j, other := range all {
			if same := want.Compare(other) == 0; same != (i == j) {
				t.Errorf("%v and %v: got equal %v", want, other, same)
			}
		}
	}
}

// TestMeasurementBytes fixes the encoding that identities are computed from.
func TestMeasurementBytes(t *testing.T) {
	want := "15" + hex.EncodeToString([]byte("cohort measurement v1")) +
		"00000004" + hex.EncodeToString([]byte("soft")) +
		"00000024" + "12" + hex.EncodeToString([]byte("cohort register v1")) + "00000001" + "61" + "00000002" + hex.EncodeToString([]byte("is")) + "00000002" + "0102" +
		"00000023" + "12" + hex.EncodeToString([]byte("cohort register v1")) + "00000001" + "62" + "00000003" + hex.EncodeToString([]byte("any")) + "00000000"
	if got := hex.EncodeToString(tuple("\x01\x02", "*").Bytes()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func register(parts ...string) []byte {
	fields := make([][]byte, len(parts))
	for i, p := range parts {
		fields[i] = []byte(p)
	}
	return wire.Frame(wire.LabelRegister, fields...)
}

func TestParseMeasurementRefusals(t *testing.T) {
	soft := []byte(attest.Soft)
	for name, b := range map[string][]byte{
		"nothing":              nil,
		"another label":        wire.Frame(wire.LabelRegister, soft, register("a", "is", "1")),
		"no platform":          wire.Frame(wire.LabelMeasurement),
		"no register":          wire.Frame(wire.LabelMeasurement, soft),
		"register: no framing": wire.Frame(wire.LabelMeasurement, soft, []byte("a")),
		"register: two parts":  wire.Frame(wire.LabelMeasurement, soft, register("a", "is")),
		"register: four parts": wire.Frame(wire.LabelMeasurement, soft, register("a", "is", "1", "")),
		"register: kind":       wire.Frame(wire.LabelMeasurement, soft, register("a", "was", "1")),
		"register: no kind":    wire.Frame(wire.LabelMeasurement, soft, register("a", "", "1")),
		"any with a value":     wire.Frame(wire.LabelMeasurement, soft, register("a", "any", "1")),
		"trailing byte":        append(wire.Frame(wire.LabelMeasurement, soft, register("a", "is", "1")), 0),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := attest.ParseMeasurement(b); !errors.Is(err, wire.Malformed) {
				t.Errorf("got %v, want %v", err, wire.Malformed)
			}
		})
	}
}

func FuzzParseMeasurement(f *testing.F) {
	f.Add(tuple("1", "*", "").Bytes())
	f.Add(attesttest.Measure("scoring").Bytes())
	f.Add(wire.Frame(wire.LabelMeasurement, []byte("soft"), register("a", "any", "1")))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := attest.ParseMeasurement(b)
		if err != nil {
			if !errors.Is(err, wire.Malformed) {
				t.Fatalf("got %v, want %v", err, wire.Malformed)
			}
			return
		}
		if !bytes.Equal(m.Bytes(), b) {
			t.Errorf("another encoding was read: got %x, want %x", b, m.Bytes())
		}
		again, err := attest.ParseMeasurement(m.Bytes())
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("got %v, %v, want %v", again, err, m)
		}
	})
}

func TestMeasurementString(t *testing.T) {
	long := wire.Sum([]byte("x"))
	got := tuple(string(long[:]), "*", "", "\x01").String()
	if want := "soft a=" + long.String() + " b=any c=none d=01"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
