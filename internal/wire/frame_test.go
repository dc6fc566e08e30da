package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"regexp"
	"strings"
	"testing"
)

// TestFrameBytes holds the encoding that everything signed is made of.
func TestFrameBytes(t *testing.T) {
	for _, c := range []struct {
		name   string
		fields [][]byte
		want   string
	}{
		{"no field", nil, "0f" + "636f686f7274206e6f6e6365207631"},
		{"an empty field", [][]byte{{}}, "0f" + "636f686f7274206e6f6e6365207631" + "00000000"},
		{"two fields", [][]byte{{1}, {2, 3}}, "0f" + "636f686f7274206e6f6e6365207631" + "00000001" + "01" + "00000002" + "0203"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := hex.EncodeToString(Frame(LabelNonce, c.fields...)); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func TestAppendFieldIsOneFieldMore(t *testing.T) {
	got := AppendField(Frame(LabelNonce, []byte("a")), []byte("b"))
	if want := Frame(LabelNonce, []byte("a"), []byte("b")); !bytes.Equal(got, want) {
		t.Errorf("got %x, want %x", got, want)
	}
}

// TestHashes are digests of two framings, taken with sha256sum and sha512sum.
func TestHashes(t *testing.T) {
	if got, want := Hash(LabelNonce, []byte{1}, []byte{2, 3}).Hex(), "a8c4d471690e2ef8671df848e9bf63225959b59e8bb283053f17f3c948e4f966"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	sum := Hash512(LabelNonce, []byte{1}, []byte{2, 3})
	if got, want := hex.EncodeToString(sum[:]), "f04c014390df5eda9ae16bbfe36dcfc07d6422937191459915ea33e457818d95348332b757d9904267e42371123e74a2d74e6a1a7dda1a55bde62b5bd3bf7f4b"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestUint64(t *testing.T) {
	if got := hex.EncodeToString(Uint64(0x0102030405060708)); got != "0102030405060708" {
		t.Errorf("got %s", got)
	}
}

func TestUnframeRefusals(t *testing.T) {
	good := Frame(LabelNonce, []byte("a"), []byte("bc"))
	long := bytes.Clone(good)
	long[1+len(LabelNonce)] = 0xff // a length of 4 GiB
	for _, c := range []struct {
		name string
		b    []byte
		n    int
	}{
		{"nothing", nil, -1},
		{"no fields", good, 0},
		{"a field too few", good, 1},
		{"a field too many", good, 3},
		{"another label", Frame(LabelRow, []byte("a"), []byte("bc")), 2},
		{"a label cut short", good[:5], -1},
		{"another length of the label", append([]byte{good[0] - 1}, good[1:]...), 2},
		{"a cut length", append(bytes.Clone(good), 0, 0, 0), -1},
		{"a cut field", good[:len(good)-1], -1},
		{"a huge length", long, -1},
		{"a trailing byte", append(bytes.Clone(good), 0), -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Unframe(LabelNonce, c.b, c.n); !errors.Is(err, Malformed) {
				t.Errorf("got %v, want %v", err, Malformed)
			}
		})
	}
	if _, err := Unframe(LabelNonce, good, 2); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

func TestFieldsOfAFramingDoNotRunIntoEachOther(t *testing.T) {
	fields, err := Unframe(LabelNonce, Frame(LabelNonce, []byte("a"), []byte("b")), 2)
	if err != nil {
		t.Fatal(err)
	}
	_ = append(fields[0], "xxxxx"...)
	if string(fields[1]) != "b" {
		t.Error("appending to one field wrote into the next")
	}
}

func FuzzUnframe(f *testing.F) {
	f.Add(Frame(LabelNonce))
	f.Add(Frame(LabelNonce, nil, []byte("a"), []byte("bc")))
	f.Add(Frame(LabelRow, []byte("a")))
	f.Fuzz(func(t *testing.T, b []byte) {
		fields, err := Unframe(LabelNonce, b, -1)
		if err != nil {
			if !errors.Is(err, Malformed) {
				t.Fatalf("got %v, want %v", err, Malformed)
			}
			return
		}
		if again := Frame(LabelNonce, fields...); !bytes.Equal(again, b) {
			t.Errorf("another encoding was read: got %x, want %x", b, again)
		}
	})
}

func TestLabels(t *testing.T) {
	form := regexp.MustCompile(`^cohort [a-z0-9 -]+ v[1-9]$`)
	framings := make([]string, len(Labels))
	for i, l := range Labels {
		framings[i] = string(Frame(l))
		if !form.MatchString(string(l)) || len(l) > 255 {
			t.Errorf("%q: want \"cohort … v1\", or a later version, of at most 255 bytes", l)
		}
	}
	for i, a := range framings {
		for j, b := range framings {
			if i != j && strings.HasPrefix(a, b) {
				t.Errorf("the framing of %q begins with that of %q", Labels[i], Labels[j])
			}
		}
	}
}
