package dcap

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// instruction returns a record of a stream: a tag, fields, and zeros.
func instruction(tag string, fields ...[]byte) []byte {
	record := make([]byte, recordSize)
	copy(record[copy(record, tag):], bytes.Join(fields, nil))
	return record
}

func number(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

func create(size uint64) []byte { return instruction(tagCreate, []byte{1, 0, 0, 0}, number(size)) }

func page(at uint64) []byte {
	return instruction(tagAdd, number(at), []byte{5, 2}) // readable, executable; a regular page
}

func chunk(tag string, at uint64, fill byte) []byte {
	return append(instruction(tag, number(at)), bytes.Repeat([]byte{fill}, chunkSize)...)
}

// TestMeasureSGXS: the measurement is the digest of what the CPU measures, in its order.
// Unmeasured pages do not change it.
func TestMeasureSGXS(t *testing.T) {
	measured := [][]byte{create(8192), page(0), chunk(tagExtend, 0, 1), chunk(tagExtend, 256, 2), page(4096), chunk(tagExtend, 4096+15*256, 3)}
	want := sha256.Sum256(bytes.Join(measured, nil))
	stream := slices.Insert(measured, 4, chunk(tagUnmeasured, 512, 9))
	got, unmeasured, err := measureSGXS(bytes.Join(stream, nil))
	if err != nil {
		t.Fatal(err)
	}
	if r := got.Registers[0]; r.Name != "mrenclave" || !bytes.Equal(r.Value, want[:]) {
		t.Errorf("got %s %x, want %x", r.Name, r.Value, want)
	}
	if unmeasured != 256 || !got.Registers[1].Any || !got.Registers[2].Any || got.Registers[3].Any {
		t.Errorf("got %d bytes unmeasured, %v, want 256, signer and product open", unmeasured, got)
	}
	// The smallest enclave, with a digest computed by hand.
	one, _, err := measureSGXS(append(create(4096), page(0)...))
	if err != nil || hex.EncodeToString(one.Registers[0].Value) != "0ae331a446474100061f30f75df6db3ed4192535ddfb8aae57f3eb7e61ec6ad2" {
		t.Errorf("got %x, %v", one.Registers[0].Value, err)
	}
}

func TestMeasureSGXSRefusals(t *testing.T) {
	for name, stream := range map[string][][]byte{
		"nothing":                  {},
		"no page":                  {create(4096)},
		"a page first":             {page(0)},
		"a chunk first":            {create(4096), chunk(tagExtend, 0, 1)},
		"created twice":            {create(4096), create(4096), page(0)},
		"size not a power of two":  {create(12288), page(0)},
		"size of less than a page": {create(2048), page(0)},
		"another tag":              {create(4096), page(0), instruction("EREMOVE\x00")},
		"without its size":         {instruction("UNSIZED\x00", []byte{1, 0, 0, 0}), page(0)},
		"cut":                      {create(4096), page(0)[:63]},
		"cut chunk":                {create(4096), page(0), chunk(tagExtend, 0, 1)[:319]},
		"page at an odd offset":    {create(8192), page(256)},
		"page outside":             {create(4096), page(4096)},
		"page twice":               {create(4096), page(0), page(0)},
		"pages backwards":          {create(8192), page(4096), page(0)},
		"chunk twice":              {create(4096), page(0), chunk(tagExtend, 0, 1), chunk(tagUnmeasured, 0, 1)},
		"chunk of another page":    {create(8192), page(0), chunk(tagExtend, 4096, 1)},
		"chunk at an odd offset":   {create(4096), page(0), chunk(tagExtend, 16, 1)},
		"more behind ECREATE":      {instruction(tagCreate, []byte{1, 0, 0, 0}, number(4096), []byte{1}), page(0)},
		"more behind EEXTEND":      {create(4096), page(0), append(instruction(tagExtend, number(0), []byte{1}), make([]byte, chunkSize)...)},
	} {
		if _, _, err := measureSGXS(bytes.Join(stream, nil)); !errors.Is(err, wire.Malformed) {
			t.Errorf("%s: got %v, want malformed", name, err)
		}
	}
}

// FuzzMeasureSGXS: the measurement is the digest of the whole stream exactly when all of it is
// measured.
func FuzzMeasureSGXS(f *testing.F) {
	f.Add(bytes.Join([][]byte{create(4096), page(0), chunk(tagExtend, 0, 1), chunk(tagUnmeasured, 256, 2)}, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, unmeasured, err := measureSGXS(b)
		if whole := sha256.Sum256(b); err == nil && (unmeasured == 0) != bytes.Equal(m.Registers[0].Value, whole[:]) {
			t.Errorf("got %x with %d bytes unmeasured, and %x of the whole", m.Registers[0].Value, unmeasured, whole)
		}
	})
}

// TestFindSigstruct: the signature structure is found anywhere in a file. A file with two
// different ones is refused.
func TestFindSigstruct(t *testing.T) {
	one := sigstruct(t, nil)
	other := sigstruct(t, func(b []byte) { b[960] ^= 1 })
	around := func(parts ...[]byte) []byte { return bytes.Join(parts, []byte("\x7fELF and sections")) }
	spoilt := bytes.Clone(other)
	spoilt[600] ^= 1
	for _, row := range []struct {
		name string
		file []byte
		want wire.Reason
	}{
		{"alone", one, ""},
		{"in a file", around(nil, one, nil), ""},
		{"twice the same", around(one, nil, one), ""},
		{"beside one that nobody signed", around(spoilt, one), ""},
		{"two different", around(nil, one, other), wire.Malformed},
		{"none", around(nil, nil), wire.Malformed},
		{"cut", around(nil, one[:1807])[:1820], wire.Malformed},
		{"signed by nobody", around(nil, spoilt), wire.BadSignature},
	} {
		got, err := findSigstruct(row.file)
		if row.want == "" && (err != nil || got.SVN != 3) || row.want != "" && !errors.Is(err, row.want) {
			t.Errorf("%s: got %+v, %v, want %q", row.name, got, err, row.want)
		}
	}
}
