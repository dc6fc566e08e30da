package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"
)

var testHeader = Header{Session: SessionID{1, 2, 3}, Number: 4, Target: UnitID{5}, NotAfter: time.UnixMilli(0x0102030405), Flags: FlagReceipt}

func TestHeaderBytes(t *testing.T) {
	b := testHeader.Encode()
	want := "01" + "010203" + strings.Repeat("00", 21) + "0000000000000004" + "05" + strings.Repeat("00", 15) + "0000000102030405" + "01"
	if got := hex.EncodeToString(b[:]); got != want || len(b) != 58 {
		t.Errorf("got %s, want %s", got, want)
	}
	if got, err := ParseHeader(b[:]); err != nil || got != testHeader {
		t.Errorf("got %+v, %v, want %+v", got, err, testHeader)
	}
}

func TestParseHeaderRefusals(t *testing.T) {
	for name, edit := range map[string]func([]byte) []byte{
		"nothing":              func([]byte) []byte { return nil },
		"short":                func(b []byte) []byte { return b[:HeaderSize-1] },
		"another version":      func(b []byte) []byte { b[0] = 2; return b },
		"number 0":             func(b []byte) []byte { b[32] = 0; return b },
		"a time of 64 bits":    func(b []byte) []byte { b[49] = 0x80; return b },
		"a flag nobody knows":  func(b []byte) []byte { b[57] = 4; return b },
		"all the flags at all": func(b []byte) []byte { b[57] = 0xff; return b },
	} {
		b := testHeader.Encode()
		if _, err := ParseHeader(edit(b[:])); !errors.Is(err, Malformed) {
			t.Errorf("%s: got %v, want %v", name, err, Malformed)
		}
	}
}

func TestSessionIDs(t *testing.T) {
	id := SessionID{0, 0, 0, 0, 0, 0, 1, 2, 0xff}
	if id.Range() != 0x102 {
		t.Errorf("got %d", id.Range())
	}
	if got, err := ParseSessionID(id.String()); err != nil || got != id {
		t.Errorf("got %v, %v, want %v", got, err, id)
	}
	for _, s := range []string{"", id.String()[2:], strings.ToUpper(id.String()), strings.Repeat("x", 48)} {
		if _, err := ParseSessionID(s); !errors.Is(err, Malformed) {
			t.Errorf("%q: got %v, want %v", s, err, Malformed)
		}
	}
}

func FuzzParseHeader(f *testing.F) {
	b := testHeader.Encode()
	f.Add(b[:])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHeader(b)
		if err != nil {
			return
		}
		if again := h.Encode(); !bytes.Equal(again[:], b[:HeaderSize]) {
			t.Errorf("another encoding was read: got %x, want %x", again, b[:HeaderSize])
		}
	})
}

func FuzzUnframeInto(f *testing.F) {
	f.Add(Frame(LabelNonce, []byte("a"), nil))
	f.Add(Frame(LabelNonce, []byte("a")))
	f.Fuzz(func(t *testing.T, b []byte) {
		var fields [2][]byte
		into := UnframeInto(fields[:], LabelNonce, b)
		list, err := Unframe(LabelNonce, b, 2)
		if (into == nil) != (err == nil) {
			t.Fatalf("got %v, want %v", into, err)
		}
		if err == nil && (!bytes.Equal(fields[0], list[0]) || !bytes.Equal(fields[1], list[1])) {
			t.Errorf("got %x, want %x", fields, list)
		}
	})
}
