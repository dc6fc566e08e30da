package wire

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

const (
	abcHex  = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // FIPS 180-2, "abc"
	abcText = "sha256:" + abcHex
)

func TestDigestForms(t *testing.T) {
	d := Sum([]byte("abc"))
	if d.Hex() != abcHex || d.String() != abcText || d.IsZero() || !(Digest{}).IsZero() {
		t.Errorf("got %s, %s, zero %v", d.Hex(), d, d.IsZero())
	}
	for _, s := range []string{abcHex, abcText} {
		if got, err := ParseDigest(s); err != nil || got != d {
			t.Errorf("%s: got %v, %v", s, got, err)
		}
	}
}

func TestParseDigestRefusals(t *testing.T) {
	for name, s := range map[string]string{
		"nothing":       "",
		"prefix alone":  "sha256:",
		"two prefixes":  "sha256:" + abcText,
		"another":       "sha512:" + abcHex,
		"short":         abcText[:len(abcText)-2],
		"odd":           abcText[:len(abcText)-1],
		"long":          abcText + "00",
		"upper case":    "sha256:" + strings.ToUpper(abcHex),
		"upper prefix":  "SHA256:" + abcHex,
		"no hex":        "sha256:" + strings.Repeat("x", 64),
		"space":         " " + abcText,
		"the zero one":  "sha256:" + strings.Repeat("0", 64),
		"zero, no type": strings.Repeat("0", 64),
	} {
		t.Run(name, func(t *testing.T) {
			if d, err := ParseDigest(s); !errors.Is(err, Malformed) || !d.IsZero() {
				t.Errorf("got %v, %v, want %v", d, err, Malformed)
			}
		})
	}
}

func TestDigestInJSON(t *testing.T) {
	for _, want := range []Digest{Sum([]byte("abc")), {}} {
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got := Digest{1}
		if err := json.Unmarshal(text, &got); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{`"` + abcHex + `"`, `"sha256:00"`, `7`} {
		var d Digest
		if err := json.Unmarshal([]byte(text), &d); err == nil {
			t.Errorf("%s: read as %v", text, d)
		}
	}
}

func FuzzParseDigest(f *testing.F) {
	f.Add(abcText)
	f.Add(abcHex)
	f.Add("sha256:")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDigest(s)
		if err == nil && d.String() != s && d.Hex() != s {
			t.Errorf("another encoding was read: got %q, want %q", s, d)
		}
		if err != nil && !errors.Is(err, Malformed) {
			t.Errorf("got %v, want %v", err, Malformed)
		}
	})
}

func TestUnitID(t *testing.T) {
	id := UnitIDOf([]byte("abc"))
	if got, want := id.String(), abcHex[:32]; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	text, err := json.Marshal(id)
	if err != nil {
		t.Fatal(err)
	}
	var again UnitID
	if err := json.Unmarshal(text, &again); err != nil || again != id {
		t.Errorf("got %v, %v, want %v", again, err, id)
	}
	for _, s := range []string{"", abcHex[:30], abcHex[:34], strings.ToUpper(abcHex[:32]), strings.Repeat("x", 32)} {
		if err := again.UnmarshalText([]byte(s)); !errors.Is(err, Malformed) {
			t.Errorf("%q: got %v, want %v", s, err, Malformed)
		}
	}
}

func TestNames(t *testing.T) {
	for _, c := range []struct {
		s             string
		name, release bool
	}{
		{"a", true, true}, {"scoring-2", true, true}, {"2026.11", false, true}, {strings.Repeat("a", 63), true, true},
		{"", false, false}, {strings.Repeat("a", 64), false, false}, {"A", false, false}, {"a b", false, false},
		{"a/b", false, false}, {"ä", false, false}, {"a_b", false, false}, {"a\n", false, false}, {"a\x00", false, false},
	} {
		if got := ValidName(c.s); got != c.name {
			t.Errorf("NameOK(%q): got %v, want %v", c.s, got, c.name)
		}
		if got := ValidReleaseName(c.s); got != c.release {
			t.Errorf("ReleaseNameOK(%q): got %v, want %v", c.s, got, c.release)
		}
	}
}

func TestPaths(t *testing.T) {
	for got, want := range map[string]string{
		AuthorityPath: "/authority", TaskPath("scoring"): "/task/scoring", RolePath("trial", "holder"): "/group/trial/role/holder",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
