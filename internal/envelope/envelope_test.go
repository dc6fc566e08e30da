package envelope

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// sealed is a whole message, and edit one with one part of its header changed.
func sealed(kind Kind, edit func(header [][]byte)) []byte {
	h := Header{For: wire.Digest{1}, Ring: [16]byte{2}, Session: wire.SessionID{3}, Expiry: 4, Sealer: wire.UnitID{5}}
	_, label := kind.labels()
	fields, err := wire.Unframe(label, h.Encode(kind), 6)
	if err != nil {
		panic(err)
	}
	if edit != nil {
		edit(fields)
	}
	return Sealed{AD: wire.Frame(label, fields...), Nonce: make([]byte, 12), Ciphertext: []byte("ciphertext")}.Encode(kind)
}

func TestParseSealed(t *testing.T) {
	for _, kind := range []Kind{Session, Tombstone} {
		raw := sealed(kind, nil)
		s, err := ParseSealed(kind, raw)
		if err != nil || s.Session != (wire.SessionID{3}) || s.Expiry != 4 || !bytes.Equal(s.Encode(kind), raw) || !bytes.Equal(s.Header.Encode(kind), s.AD) {
			t.Errorf("kind %d: got %+v, %v", kind, s, err)
		}
	}
	cut := func(field int) func([][]byte) {
		return func(f [][]byte) { f[field] = f[field][:len(f[field])-1] }
	}
	for _, row := range []struct {
		name string
		raw  []byte
		want wire.Reason
	}{
		{"of another kind", sealed(Tombstone, nil), wire.Malformed},
		{"too large", make([]byte, MaxSealed+1), wire.TooLarge},
		{"one byte left over", append(sealed(Session, nil), 0), wire.Malformed},
		{"another suite", sealed(Session, func(f [][]byte) { f[0][0]++ }), wire.Malformed},
		{"no suite", sealed(Session, cut(0)), wire.Malformed},
		{"a cut identity", sealed(Session, cut(1)), wire.Malformed},
		{"a cut ring id", sealed(Session, cut(2)), wire.Malformed},
		{"a cut session id", sealed(Session, cut(3)), wire.Malformed},
		{"a cut expiry", sealed(Session, cut(4)), wire.Malformed},
		{"a cut unit id", sealed(Session, cut(5)), wire.Malformed},
		{"a cut nonce", Sealed{AD: Header{}.Encode(Session), Nonce: make([]byte, 11)}.Encode(Session), wire.Malformed},
	} {
		if _, err := ParseSealed(Session, row.raw); !errors.Is(err, row.want) {
			t.Errorf("%s: got %v, want %s", row.name, err, row.want)
		}
	}
}

// open is an open request, as far as a carrier reads it.
func open(pin []byte) []byte {
	return wire.Frame(wire.LabelSessionOpen, []byte{Suite}, nil, nil, pin, nil, nil)
}

func TestPinOf(t *testing.T) {
	for _, p := range []Pin{
		{PinID, strings.Repeat("x", 32), wire.Digest{1}},
		{PinTask, "scoring", wire.Digest{1}},
		{PinGroup, "risk", wire.Digest{1}},
		{PinRole, "risk/bank", wire.Digest{1}},
	} {
		if got, err := ParsePin(open(p.Encode())); err != nil || got != p {
			t.Errorf("got %v, %v, want %v", got, err, p)
		}
	}
	genesis := make([]byte, 32)
	for name, pin := range map[string][]byte{
		"another kind":      Pin{"unit", "scoring", wire.Digest{}}.Encode(),
		"a short id":        Pin{PinID, "short", wire.Digest{}}.Encode(),
		"no task":           Pin{PinTask, "", wire.Digest{}}.Encode(),
		"a task with roles": Pin{PinTask, "risk/bank", wire.Digest{}}.Encode(),
		"a role of none":    Pin{PinRole, "bank", wire.Digest{}}.Encode(),
		"two roles":         Pin{PinRole, "risk/bank/teller", wire.Digest{}}.Encode(),
		"a short genesis":   wire.Frame(wire.LabelPin, []byte(PinTask), []byte("scoring"), genesis[:31]),
		"no pin":            nil,
	} {
		if _, err := ParsePin(open(pin)); !errors.Is(err, wire.Malformed) {
			t.Errorf("%s: got %v, want malformed", name, err)
		}
	}
}

func FuzzParseSealed(f *testing.F) {
	f.Add(sealed(Session, nil))
	f.Add(sealed(Session, func(h [][]byte) { h[3] = h[3][:23] }))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s, err := ParseSealed(Session, raw); err == nil && (!bytes.Equal(s.Encode(Session), raw) || !bytes.Equal(s.Header.Encode(Session), s.AD)) {
			t.Errorf("got %+v of %x", s, raw)
		}
	})
}

func FuzzPinOf(f *testing.F) {
	f.Add(open(Pin{PinTask, "scoring", wire.Digest{}}.Encode()))
	f.Add(open(Pin{PinID, strings.Repeat("x", 32), wire.Digest{}}.Encode()))
	f.Add(open(Pin{PinRole, "risk/bank", wire.Digest{}}.Encode()))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if pin, err := ParsePin(raw); err == nil && !bytes.Contains(raw, pin.Encode()) {
			t.Errorf("got %+v of %x", pin, raw)
		}
	})
}

func FuzzOpenedSession(f *testing.F) {
	id := wire.SessionID{1, 2, 3}
	whole := wire.Frame(wire.LabelSessionResponse, make([]byte, 1120), id[:], []byte("more"))
	f.Add(whole)
	f.Add(whole[:len(whole)-8])
	f.Add(whole[:30])
	f.Add(append(bytes.Clone(whole[:1+len(wire.LabelSessionResponse)]), "\xff\xff\xff\xff"...))
	f.Fuzz(func(t *testing.T, response []byte) {
		id, ok := OpenedSession(response)
		if !ok {
			return
		}
		at := 1 + len(wire.LabelSessionResponse)
		enc := response[at+4:][:binary.BigEndian.Uint32(response[at:])]
		if again := wire.Frame(wire.LabelSessionResponse, enc, id[:]); !bytes.HasPrefix(response, again) {
			t.Errorf("got %x, which does not begin as what was framed again, %x", response, again)
		}
	})
}
