package policy

import (
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/cohort-tee/cohort/internal/wire"
	"golang.org/x/crypto/ssh"
)

// TestHidden: no character that a reader does not see stands in a policy, in a
// comment or anywhere else; what people write in their languages does.
func TestHidden(t *testing.T) {
	h := newHouse()
	for name, text := range map[string]string{
		"an override of direction in a comment": "# safe \u202e evil",
		"an isolate":                            "# \u2066x",
		"a mark of Arabic":                      "# \u061c",
		"no width":                              "# a\u200bb",
		"a joiner":                              "# a\u200db",
		"a word joiner":                         "# a\u2060b",
		"a soft hyphen":                         "# a\u00adb",
		"a byte order mark inside":              "# a\ufeffb",
		"a separator of lines":                  "# a\u2028[task.evil]",
		"a next line":                           "# a\u0085[task.evil]",
		"an escape":                             "# a\u009b2Kb",
		"a variation selector":                  "# a\ufe0f",
		"a tag":                                 "# a\U000e0041",
		"a filler":                              "# a\u3164b",
		"private use":                           "# a\ue000",
		"one inside a value":                    "[measured.x]\nsha256 = \"\u202e\"",
		"one inside a key":                      "\"a\u200b\" = 1",
	} {
		t.Run(name, func(t *testing.T) {
			raw := append(h.text(t), "\n"+text+"\n"...)
			_, err := Parse(raw)
			refused(t, err, wire.BadPolicy)
			var faults Faults
			if !errors.As(err, &faults) || faults[0].Rule != "character" || !strings.HasPrefix(faults[0].Got, "U+") {
				t.Errorf("got %v, want rule character that names it", err)
			}
			if at := fmt.Sprint("line ", strings.Count(string(raw[:strings.Index(string(raw), text)]), "\n")+1); len(faults) == 1 && !strings.Contains(text, "\n") && !strings.HasPrefix(faults[0].Path, at+",") {
				t.Errorf("got place %q, want %s", faults[0].Path, at)
			}
		})
	}
	for _, text := range []string{"# Größe, 日本語, עברית, العربية, हिन्दी, é (e\u0301), ❤", "#\ttab"} {
		if _, err := Parse(append(h.text(t), "\n"+text+"\n"...)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestHiddenIsWhole: the list has whatever this version of Unicode calls a format
// character, a separator of lines, private or ignorable, and nothing that it calls
// a letter, number, punctuation, symbol or space.
func TestHiddenIsWhole(t *testing.T) {
	must := []*unicode.RangeTable{unicode.Cf, unicode.Cc, unicode.Co, unicode.Cs, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector, unicode.Noncharacter_Code_Point}
	for r := rune(0); r <= unicode.MaxRune; r++ {
		want := unicode.In(r, must...) && r != '\t' && r != '\n'
		got := unicode.Is(hidden, r)
		if want && !got {
			t.Errorf("%U is not refused", r)
		}
		if got && !want && unicode.In(r, unicode.L, unicode.N, unicode.P, unicode.S, unicode.Zs, unicode.Mc, unicode.Me) {
			t.Errorf("%U is refused, and has a form", r)
		}
	}
}

// pointKey is an Ed25519 key with the given coordinate, unchecked.
func pointKey(t testing.TB, kind string, point []byte) ssh.PublicKey {
	t.Helper()
	blob := ssh.Marshal(struct {
		Type string
		Key  []byte
	}{kind, point})
	if kind == ssh.KeyAlgoSKED25519 {
		blob = append(blob, ssh.Marshal(struct{ Application string }{skApplication})...)
	}
	key, err := ssh.ParsePublicKey(blob)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// smallPoints are all spellings of small points: each coordinate with both signs.
func smallPoints(t testing.TB) [][]byte {
	t.Helper()
	var points [][]byte
	for _, text := range smallOrder {
		y, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		negative := slices.Clone(y)
		negative[31] |= 0x80
		points = append(points, y, negative)
	}
	return points
}

// TestSmallOrder: a key under which anybody makes signatures is refused wherever a
// key is read: as an owner's and a party's in policy, in a signature, in a file.
func TestSmallOrder(t *testing.T) {
	message := []byte("message")
	anybody := 0
	for _, point := range smallPoints(t) {
		for _, kind := range []string{ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519} {
			key := pointKey(t, kind, point)
			line := keyLine(key)
			refused(t, checkKey(key), wire.BadSignature)
			if _, err := parseKey(line); err == nil {
				t.Errorf("%s is read as the key of an owner", line)
			}
			_, err := ParsePublicKey([]byte(line + "\n"))
			refused(t, err, wire.BadSignature)
			_, err = Parse(newHouse().text(t, "ANA", line))
			refused(t, err, wire.BadPolicy)
			_, err = Parse(newGroupHouse().text(t, grouped("NORTH", line)...))
			refused(t, err, wire.BadPolicy)
		}
		// R is the identity and S is 0: this holds when the hash times the point is
		// the identity, at the latest for some of these messages.
		signature := append([]byte{1}, make([]byte, 63)...)
		for i := range 64 {
			if ed25519.Verify(point, covered(ForPolicy, []byte{byte(i)}), signature) {
				anybody++
				break
			}
		}
		sig := ssh.Marshal(ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: signature})
		e := envelope{1, pointKey(t, ssh.KeyAlgoED25519, point).Marshal(), string(ForPolicy), "", sigHash, sig}
		_, err := Verify(armor(append([]byte(sigMagic), ssh.Marshal(e)...)), ForPolicy, message)
		refused(t, err, wire.BadSignature)
	}
	if anybody < 8 {
		t.Errorf("%d of the points verify what nobody signed, want at least the 8 in their first spelling", anybody)
	}
	for _, y := range []byte{0xef, 0xff} { // coordinates above p: further spellings of 2 to 18
		point := append([]byte{y}, make([]byte, 31)...)
		for i := range 31 {
			point[i+1] = 0xff
		}
		point[31] = 0x7f
		refused(t, checkKey(pointKey(t, ssh.KeyAlgoED25519, point)), wire.BadSignature)
	}
	if err := checkKey(fixed("ana").PublicKey()); err != nil {
		t.Errorf("a key that ssh-keygen makes: %v", err)
	}
}

// FuzzCharacters puts one character anywhere into a good policy: one that is not
// seen is refused and named, whatever it would have done there, and of all others
// the text is kept as it stands.
func FuzzCharacters(f *testing.F) {
	good := newHouse().text(f)
	for _, r := range []rune{'x', '\t', '\n', 0x202e, 0x200b, 0x2028, 0x85, 0xe0041, 'é', '\\', '"'} {
		f.Add(uint16(3), r)
		f.Add(uint16(strings.Index(string(good), "clinic")), r)
	}
	f.Fuzz(func(t *testing.T, at uint16, r rune) {
		if r == '\r' || r == unicode.ReplacementChar || string(r) == string(unicode.ReplacementChar) {
			return // told by other rules
		}
		i := int(at) % len(good)
		raw := slices.Concat(good[:i], []byte(string(r)), good[i:])
		d, err := Parse(raw)
		var faults Faults
		if unicode.Is(hidden, r) && !(r == 0xfeff && i == 0) && (!errors.As(err, &faults) || faults[0].Got != fmt.Sprintf("%U", r)) {
			t.Fatalf("%U at %d: got %v, want it refused and named", r, i, err)
		}
		if err == nil && string(d.Raw()) != string(raw) {
			t.Fatalf("%U at %d: the text is not kept as it stands", r, i)
		}
	})
}
