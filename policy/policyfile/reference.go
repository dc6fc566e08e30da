package policyfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytoml"
)

// isTEE reports whether programs run in a platform: devices have no registers.
func isTEE(p attest.PolicyRules) bool { return len(p.Registers) > 0 }

// measuredNames are the digests of [measured.X], by X.
type measuredNames map[string]attest.Digest

func readMeasured(root policytoml.Table) measuredNames {
	names := measuredNames{}
	for _, t := range root.ReadNamedTables("measured", wantName, wire.ValidName) {
		t.Require("sha256")
		t.ReadText("sha256", "64 lower-case hexadecimal digits", func(s string) bool {
			d, err := wire.ParseDigest(s)
			names[t.Name] = d
			return err == nil && s == d.Hex()
		})
		t.RejectUnknown()
	}
	return names
}

// references reads the key "reference": at least one reference value. It leaves out values
// with a fault.
func (m measuredNames) references(t policytoml.Table) []attest.ReferenceValue {
	var out []attest.ReferenceValue
	inner := t.ReadTables("reference")
	for _, r := range inner {
		if ref, ok := m.reference(r); ok {
			out = append(out, ref)
		}
	}
	if t.HasKey("reference") && len(inner) == 0 {
		t.AddFault("reference", "number of reference values", 0, "at least 1")
	}
	return out
}

// reference reads one reference value: the platform, each of its registers, and any, the
// list of registers that match every value.
func (m measuredNames) reference(t policytoml.Table) (attest.ReferenceValue, bool) {
	before := len(*t.Faults)
	t.Require("platform")
	teeOK := func(s string) bool { p, ok := known.lookup(attest.Platform(s)); return ok && isTEE(p) }
	ref := attest.ReferenceValue{Platform: attest.Platform(t.ReadText("platform", known.names(isTEE), teeOK))}
	platform, ok := known.lookup(ref.Platform)
	if !ok {
		return ref, false // without its platform no other key can be read
	}
	var openable []string
	for _, r := range platform.Registers {
		if !r.Shut {
			openable = append(openable, r.Name)
		}
	}
	open := t.ReadSet("any", "one of "+strings.Join(openable, ", "), func(s string) bool { return slices.Contains(openable, s) })
	boot, hasTPM := t, slices.ContainsFunc(platform.Registers, func(r attest.RegisterForm) bool { return r.Form == attest.FormPCR })
	if hasTPM {
		boot, _ = t.ReadTable("boot")
	}
	for _, form := range platform.Registers {
		in, key := t, form.Name
		if form.Form == attest.FormPCR {
			in, key = boot, strings.TrimPrefix(form.Name, attest.PCRPrefix)
		}
		register := attest.Register{Name: form.Name, Any: slices.Contains(open, form.Name)}
		if register.Any {
			in.Forbid(key, "any")
		} else {
			register.Value = m.register(in, key, form)
		}
		ref.Registers = append(ref.Registers, register)
	}
	t.RejectUnknown()
	if hasTPM {
		boot.RejectUnknown()
	}
	return ref, len(*t.Faults) == before
}

// arguments reads an argument list into the value of its register.
func (m measuredNames) arguments(t policytoml.Table, key string) []byte {
	var fields [][]byte
	for _, a := range t.ReadList(key, "text without NUL", noNUL) {
		fields = append(fields, []byte(a))
	}
	digest := wire.Hash(wire.LabelArguments, fields...)
	return digest[:]
}

func noNUL(s string) bool { return !strings.ContainsRune(s, 0) }

// needed reads a digest that is required.
func (m measuredNames) needed(t policytoml.Table, key string) []byte {
	t.Require(key)
	return m.digest(t, key)
}

// digest reads a digest, or "@" and the name of one; it is nil if the key is absent.
func (m measuredNames) digest(t policytoml.Table, key string) []byte {
	var d attest.Digest
	want := policytoml.WantDigest + ", or @ and one of: " + strings.Join(slices.Sorted(maps.Keys(m)), ", ")
	t.ReadText(key, want, func(s string) bool {
		if name, is := strings.CutPrefix(s, "@"); is {
			var ok bool
			d, ok = m[name]
			return ok
		}
		return policytoml.DecodeDigest(&d, s)
	})
	if d.IsZero() {
		return nil
	}
	return d[:]
}

// register reads one register in its form. A soft agent and arguments may be absent; every
// other register is required unless any lists it.
func (m measuredNames) register(t policytoml.Table, key string, r attest.RegisterForm) []byte {
	switch r.Form {
	case attest.FormDigest:
		return m.digest(t, key)
	case attest.FormNeededDigest:
		return m.needed(t, key)
	case attest.FormArguments:
		return m.arguments(t, key)
	case attest.FormCode384:
		return bytesOf(t, key, attest.WantSHA384+", not all zero", func(s string) []byte {
			if b := attest.SHA384(s); len(bytes.Trim(b, "\x00")) > 0 {
				return b
			}
			return nil
		})
	case attest.FormExtended384:
		return bytesOf(t, key, attest.WantSHA384, attest.SHA384)
	case attest.FormBytes:
		want := fmt.Sprintf("%d lower-case hexadecimal digits", 2*r.Size)
		return bytesOf(t, key, want, func(s string) []byte { return attest.Digits(s, r.Size) })
	case attest.FormNumber16:
		t.Require(key)
		return binary.BigEndian.AppendUint16(nil, uint16(t.ReadNumber(key, 0, math.MaxUint16)))
	case attest.FormPCR:
		return bytesOf(t, key, policytoml.WantDigest, attest.SHA256)
	}
	panic("policy: register " + r.Name + " of no known form") // a fault of the platform's package
}

// bytesOf reads a byte string that is required.
func bytesOf(t policytoml.Table, key, want string, read func(string) []byte) []byte {
	t.Require(key)
	return read(t.ReadText(key, want, func(s string) bool { return read(s) != nil }))
}

// references returns every reference value of the document, in a stable order.
func (d *Document) references() []attest.PlacedReference {
	var out []attest.PlacedReference
	add := func(path string, refs []attest.ReferenceValue) {
		for i, ref := range refs {
			out = append(out, attest.PlacedReference{Path: fmt.Sprintf("%s[%d]", policytoml.JoinPath(path, "reference"), i), ReferenceValue: ref})
		}
	}
	add("authority", d.Authority.References)
	for _, task := range d.TaskNames() {
		for _, release := range d.Tasks[task].ReleaseNames() {
			add(policytoml.JoinPath(policytoml.JoinPath("task."+task, "release"), release), d.Tasks[task].Releases[release].References)
		}
	}
	return out
}

// overlap reports whether one measurement could match both reference values.
func overlap(a, b attest.ReferenceValue) bool {
	if a.Platform != b.Platform {
		return false
	}
	for i, x := range a.Registers {
		y := b.Registers[i]
		if !x.Any && !y.Any && string(x.Value) != string(y.Value) {
			return false
		}
	}
	return true
}
