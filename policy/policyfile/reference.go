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
)

// isTEE tells platforms that a program runs in from devices, which no reference
// value is of.
func isTEE(p attest.PolicyRules) bool { return len(p.Registers) > 0 }

// measuredNames are the digests of [measured.X], by X.
type measuredNames map[string]attest.Digest

func readMeasured(root table) measuredNames {
	names := measuredNames{}
	for _, t := range root.named("measured", wantName, wire.ValidName) {
		t.need("sha256")
		t.text("sha256", "64 lower-case hexadecimal digits", func(s string) bool {
			d, err := wire.ParseDigest(s)
			names[t.name] = d
			return err == nil && s == d.Hex()
		})
		t.done()
	}
	return names
}

// references reads the key "reference": at least one reference value. Those
// with a fault are left out.
func (m measuredNames) references(t table) []attest.ReferenceValue {
	var out []attest.ReferenceValue
	inner := t.tables("reference")
	for _, r := range inner {
		if ref, ok := m.reference(r); ok {
			out = append(out, ref)
		}
	}
	if t.has("reference") && len(inner) == 0 {
		t.fault("reference", "number of reference values", 0, "at least 1")
	}
	return out
}

// reference reads one reference value: the platform, each of its registers, and
// any, the registers that are left open.
func (m measuredNames) reference(t table) (attest.ReferenceValue, bool) {
	before := len(*t.faults)
	t.need("platform")
	teeOK := func(s string) bool { p, ok := known.lookup(attest.Platform(s)); return ok && isTEE(p) }
	ref := attest.ReferenceValue{Platform: attest.Platform(t.text("platform", known.names(isTEE), teeOK))}
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
	open := t.set("any", "one of "+strings.Join(openable, ", "), func(s string) bool { return slices.Contains(openable, s) })
	boot, hasTPM := t, slices.ContainsFunc(platform.Registers, func(r attest.RegisterForm) bool { return r.Form == attest.FormPCR })
	if hasTPM {
		boot, _ = t.table("boot")
	}
	for _, form := range platform.Registers {
		in, key := t, form.Name
		if form.Form == attest.FormPCR {
			in, key = boot, strings.TrimPrefix(form.Name, attest.PCRPrefix)
		}
		register := attest.Register{Name: form.Name, Any: slices.Contains(open, form.Name)}
		if register.Any {
			in.absent(key, "any")
		} else {
			register.Value = m.register(in, key, form)
		}
		ref.Registers = append(ref.Registers, register)
	}
	t.done()
	if hasTPM {
		boot.done()
	}
	return ref, len(*t.faults) == before
}

// arguments reads an argument list into the value of its register.
func (m measuredNames) arguments(t table, key string) []byte {
	var fields [][]byte
	for _, a := range t.list(key, "text without NUL", noNUL) {
		fields = append(fields, []byte(a))
	}
	digest := wire.Hash(wire.LabelArguments, fields...)
	return digest[:]
}

func noNUL(s string) bool { return !strings.ContainsRune(s, 0) }

// needed reads a digest that may not be left out.
func (m measuredNames) needed(t table, key string) []byte {
	t.need(key)
	return m.digest(t, key)
}

// Digest reads a digest or "@" and the name of one; an absent key is empty.
func (m measuredNames) digest(t table, key string) []byte {
	var d attest.Digest
	want := wantDigest + ", or @ and one of: " + strings.Join(slices.Sorted(maps.Keys(m)), ", ")
	t.text(key, want, func(s string) bool {
		if name, is := strings.CutPrefix(s, "@"); is {
			var ok bool
			d, ok = m[name]
			return ok
		}
		return digestInto(&d, s)
	})
	if d.IsZero() {
		return nil
	}
	return d[:]
}

// register reads one register in its form. A soft agent and arguments may be left out and
// are then none; every other register is given or stands in any.
func (m measuredNames) register(t table, key string, r attest.RegisterForm) []byte {
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
		t.need(key)
		return binary.BigEndian.AppendUint16(nil, uint16(t.number(key, 0, math.MaxUint16)))
	case attest.FormPCR:
		return bytesOf(t, key, wantDigest, attest.SHA256)
	}
	panic("policy: register " + r.Name + " of no known form") // a fault of the platform's package
}

// bytesOf reads a byte string that may not be left out.
func bytesOf(t table, key, want string, read func(string) []byte) []byte {
	t.need(key)
	return read(t.text(key, want, func(s string) bool { return read(s) != nil }))
}

// references lists every reference value of the document, in a stable order.
func (d *Document) references() []attest.PlacedReference {
	var out []attest.PlacedReference
	add := func(path string, refs []attest.ReferenceValue) {
		for i, ref := range refs {
			out = append(out, attest.PlacedReference{Path: fmt.Sprintf("%s[%d]", join(path, "reference"), i), ReferenceValue: ref})
		}
	}
	add("authority", d.Authority.References)
	for _, task := range d.TaskNames() {
		for _, release := range d.Tasks[task].ReleaseNames() {
			add(join(join("task."+task, "release"), release), d.Tasks[task].Releases[release].References)
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
