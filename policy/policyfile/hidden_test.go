package policyfile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
	"github.com/cohort-tee/cohort/policy/policytoml"
	"golang.org/x/crypto/ssh"
)

// TestHidden: a policy with an invisible character is refused, even in a comment. Visible text in
// any language is accepted.
func TestHidden(t *testing.T) {
	h := policytest.NewHouse()
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
			raw := append(h.Text(t), "\n"+text+"\n"...)
			_, err := Parse(raw)
			policytest.Refused(t, err, wire.BadPolicy)
			var faults policytoml.Faults
			if !errors.As(err, &faults) || faults[0].Rule != "character" || !strings.HasPrefix(faults[0].Got, "U+") {
				t.Errorf("got %v, want rule character that names it", err)
			}
			if at := fmt.Sprint("line ", strings.Count(string(raw[:strings.Index(string(raw), text)]), "\n")+1); len(faults) == 1 && !strings.Contains(text, "\n") && !strings.HasPrefix(faults[0].Path, at+",") {
				t.Errorf("got place %q, want %s", faults[0].Path, at)
			}
		})
	}
	for _, text := range []string{"# Größe, 日本語, עברית, العربية, हिन्दी, é (e\u0301), ❤", "#\ttab"} {
		if _, err := Parse(append(h.Text(t), "\n"+text+"\n"...)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestHiddenIsWhole: every character that this version of Unicode classifies as format, line
// separator, private use or ignorable counts as hidden; no letter, number, punctuation, symbol or
// space does.
func TestHiddenIsWhole(t *testing.T) {
	must := []*unicode.RangeTable{unicode.Cf, unicode.Cc, unicode.Co, unicode.Cs, unicode.Zl, unicode.Zp, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector, unicode.Noncharacter_Code_Point}
	for r := rune(0); r <= unicode.MaxRune; r++ {
		want := unicode.In(r, must...) && r != '\t' && r != '\n'
		got := policytoml.IsHidden(r)
		if want && !got {
			t.Errorf("%U is not refused", r)
		}
		if got && !want && unicode.In(r, unicode.L, unicode.N, unicode.P, unicode.S, unicode.Zs, unicode.Mc, unicode.Me) {
			t.Errorf("%U is refused, and has a form", r)
		}
	}
}

// FuzzCharacters inserts one character at any place of a good policy. A hidden one is refused and
// named, whatever its effect there; with any other the text is kept unchanged.
func FuzzCharacters(f *testing.F) {
	good := policytest.NewHouse().Text(f)
	for _, r := range []rune{'x', '\t', '\n', 0x202e, 0x200b, 0x2028, 0x85, 0xe0041, 'é', '\\', '"'} {
		f.Add(uint16(3), r)
		f.Add(uint16(strings.Index(string(good), "clinic")), r)
	}
	f.Fuzz(func(t *testing.T, at uint16, r rune) {
		if r == '\r' || r == unicode.ReplacementChar || string(r) == string(unicode.ReplacementChar) {
			return // other rules report it
		}
		i := int(at) % len(good)
		raw := slices.Concat(good[:i], []byte(string(r)), good[i:])
		d, err := Parse(raw)
		var faults policytoml.Faults
		if policytoml.IsHidden(r) && !(r == 0xfeff && i == 0) && (!errors.As(err, &faults) || faults[0].Got != fmt.Sprintf("%U", r)) {
			t.Fatalf("%U at %d: got %v, want it refused and named", r, i, err)
		}
		if err == nil && string(d.Source()) != string(raw) {
			t.Fatalf("%U at %d: the text is not kept as it stands", r, i)
		}
	})
}

// TestKeysOfSmallOrder: a key of small order, for which signatures can be made without a private
// key, is refused as an owner's and as a party's key.
func TestKeysOfSmallOrder(t *testing.T) {
	for _, point := range policytest.SmallPoints(t) {
		for _, kind := range []string{ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519} {
			line := policytest.KeyLine(policytest.PointKey(t, kind, point))
			_, err := Parse(policytest.NewHouse().Text(t, "ANA", line))
			policytest.Refused(t, err, wire.BadPolicy)
			_, err = Parse(policytest.NewGroupHouse().Text(t, policytest.Grouped("NORTH", line)...))
			policytest.Refused(t, err, wire.BadPolicy)
		}
	}
}
