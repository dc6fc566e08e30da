package policy

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

// registerReader reads the key of one register of a reference value.
type registerReader func(m measuredNames, t table, key string) []byte

// registerReaders holds, for each platform that policy may name, a reader for
// each of its registers. A soft agent and arguments may be left out and are then
// none; every other register is given or stands in any. What can be zero in good
// code (nothing was signed, nothing configured, nothing extended) is configured;
// what cannot is code.
var registerReaders = map[attest.Platform]map[string]registerReader{
	attest.Soft: {"agent": measuredNames.digest, "program": measuredNames.needed, "args": measuredNames.arguments},
	attest.TPM: withPCRs(attest.TPM, map[string]registerReader{
		"agent": measuredNames.digest, "program": measuredNames.needed, "args": measuredNames.arguments,
	}),
	attest.SNP:      {"measurement": code384, "host-data": configured(32)},
	attest.AzureSNP: withPCRs(attest.AzureSNP, map[string]registerReader{"measurement": code384, "host-data": configured(32)}),
	attest.TDX:      {"mrtd": code384, "mrconfigid": configured(48), "rtmr0": extended, "rtmr1": extended, "rtmr2": extended, "rtmr3": extended},
	attest.SGX:      {"mrenclave": measuredNames.needed, "mrsigner": measuredNames.needed, "isvprodid": product, "configid": configured(64)},
	attest.Nitro:    {"pcr0": code384, "pcr1": code384, "pcr2": code384, "pcr8": extended},
}

// withPCRs adds readers of a TPM's PCRs, which may be zero: what none has extended.
func withPCRs(platform attest.Platform, readers map[string]registerReader) map[string]registerReader {
	for _, name := range attest.Registers[platform] {
		if strings.HasPrefix(name, pcrPrefix) {
			readers[name] = func(_ measuredNames, t table, key string) []byte { return bytesOf(t, key, wantDigest, sha256Digest) }
		}
	}
	return readers
}

// closed are registers that are never left open, because nothing else in a
// reference value means anything then: on Azure the paravisor vouches for the PCRs.
var closed = map[attest.Platform][]string{attest.AzureSNP: {"measurement"}}

// pcrPrefix begins the names of a TPM's registers, which stand in the table "boot" by
// their numbers.
const pcrPrefix = "pcr"

// isTEE tells platforms that a program runs in from devices, which no reference
// value is of.
func isTEE(p attest.Platform) bool { return !p.IsDevice() }

// measuredNames are the digests of [measured.X], by X.
type measuredNames map[string]attest.Digest

func readMeasured(root table) measuredNames {
	names := measuredNames{}
	for _, t := range root.named("measured", wantName, wire.NameOK) {
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
	ref := attest.ReferenceValue{Platform: attest.Platform(t.text("platform", platformList(isTEE), func(s string) bool { return registerReaders[attest.Platform(s)] != nil }))}
	registers := attest.Registers[ref.Platform]
	if registers == nil {
		return ref, false // without its platform no other key can be judged
	}
	openable := slices.DeleteFunc(slices.Clone(registers), func(name string) bool { return slices.Contains(closed[ref.Platform], name) })
	open := t.set("any", "one of "+strings.Join(openable, ", "), func(s string) bool { return slices.Contains(openable, s) })
	boot, hasTPM := t, ref.Platform == attest.TPM || ref.Platform == attest.AzureSNP
	if hasTPM {
		boot, _ = t.table("boot")
	}
	for _, name := range registers {
		in, key := t, name
		if number, is := strings.CutPrefix(name, pcrPrefix); is && hasTPM {
			in, key = boot, number
		}
		register := attest.Register{Name: name, Any: slices.Contains(open, name)}
		if register.Any {
			in.absent(key, "any")
		} else {
			register.Value = registerReaders[ref.Platform][name](m, in, key)
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

// digest reads a digest or "@" and the name of one; an absent key is empty.
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

// code384 reads a SHA-384 digest of code, which is never zero.
func code384(_ measuredNames, t table, key string) []byte {
	return bytesOf(t, key, wantSHA384+", not all zero", func(s string) []byte {
		if b := sha384(s); !zero(b) {
			return b
		}
		return nil
	})
}

// extended reads a SHA-384 digest that is zero while nothing was extended.
func extended(_ measuredNames, t table, key string) []byte {
	return bytesOf(t, key, wantSHA384, sha384)
}

// configured reads bytes that whoever launches the TEE chooses.
func configured(size int) registerReader {
	want := fmt.Sprintf("%d lower-case hexadecimal digits", 2*size)
	return func(_ measuredNames, t table, key string) []byte {
		return bytesOf(t, key, want, func(s string) []byte { return digits(s, size) })
	}
}

// product reads a product id into its two bytes.
func product(_ measuredNames, t table, key string) []byte {
	t.need(key)
	return binary.BigEndian.AppendUint16(nil, uint16(t.number(key, 0, math.MaxUint16)))
}

// bytesOf reads a byte string that may not be left out.
func bytesOf(t table, key, want string, read func(string) []byte) []byte {
	t.need(key)
	return read(t.text(key, want, func(s string) bool { return read(s) != nil }))
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// placedReference is a reference value and where it stands.
type placedReference struct {
	path string
	attest.ReferenceValue
}

// references lists every reference value of the document, in a stable order.
func (d *Document) references() []placedReference {
	var out []placedReference
	add := func(path string, refs []attest.ReferenceValue) {
		for i, ref := range refs {
			out = append(out, placedReference{fmt.Sprintf("%s[%d]", join(path, "reference"), i), ref})
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
