package wire

import (
	"bytes"
	"encoding/base64"
	"errors"
	"strings"
	"testing"
)

func encode(der []byte) string { return base64.StdEncoding.EncodeToString(der) }

// two are certificates' bytes, as PEM in lines of 64 characters.
func two() (text string, ders [][]byte) {
	ders = [][]byte{bytes.Repeat([]byte{1, 2, 3, 4, 5}, 30), {9}}
	for _, der := range ders {
		text += string(NormalizePEM([]byte(pemBegin + encode(der) + pemEnd)))
	}
	return text, ders
}

func TestCertificates(t *testing.T) {
	text, want := two()
	crlf := strings.ReplaceAll(text, "\n", "\r\n")
	one := strings.ReplaceAll(text, "\n", "")
	wide := pemBegin + "\n" + encode(want[0])[:76] + "\n" + encode(want[0])[76:] + "\n" + pemEnd + "\n" + text[strings.LastIndex(text, pemBegin):]
	for name, spelled := range map[string]string{
		"lines of 64": text, "lines of 76": wide, "CR LF": crlf, "no line at all": one, "no last line end": strings.TrimSpace(text),
		"an empty line at the end": text + "\n", "empty lines between": "\n\n" + strings.ReplaceAll(text, pemBegin, "\n\n"+pemBegin),
		"spaces and tabs": strings.ReplaceAll(text, "\n", " \t\n"),
	} {
		got, err := ParseCertificates("chain", []byte(spelled), 2)
		if err != nil || len(got) != 2 || !bytes.Equal(got[0], want[0]) || !bytes.Equal(got[1], want[1]) {
			t.Errorf("%s: got %x, %v", name, got, err)
		}
		if same := NormalizePEM([]byte(spelled)); string(same) != text {
			t.Errorf("%s: got %q, want %q", name, same, text)
		}
	}
	for name, spelled := range map[string]string{
		"text before":            "subject\n" + text,
		"text between":           strings.Replace(text, pemEnd+"\n", pemEnd+"\nissuer\n", 1),
		"text after":             text + "x",
		"a NUL":                  text + "\x00",
		"a form feed":            text + "\f",
		"a form feed inside":     strings.Replace(text, pemBegin+"\n", pemBegin+"\f", 1),
		"another kind":           strings.ReplaceAll(text, "CERTIFICATE", "PUBLIC KEY"),
		"a header":               strings.Replace(text, pemBegin+"\n", pemBegin+"\nName: x\n\n", 1),
		"no end":                 strings.Replace(text, pemEnd, "", 1),
		"a begin in the midst":   strings.Replace(text, pemEnd, pemBegin, 1),
		"no content":             pemBegin + "\n" + pemEnd,
		"base64 with spare bits": strings.Replace(text, encode(want[1]), "CR==", 1),
		"base64 without padding": strings.Replace(text, encode(want[1]), "CQ", 1),
		"base64 of URLs":         strings.Replace(text, encode(want[1]), "_Q==", 1),
	} {
		if got, err := ParseCertificates("chain", []byte(spelled), 2); !errors.Is(err, Malformed) {
			t.Errorf("%s: got %x, %v, want reason %q", name, got, err, Malformed)
		}
		if same := NormalizePEM([]byte(spelled)); string(same) != spelled {
			t.Errorf("%s: got %q, want it as it is", name, same)
		}
	}
	if _, err := ParseCertificates("chain", []byte(text), 1); !errors.Is(err, Malformed) {
		t.Errorf("one too many: %v, want reason %q", err, Malformed)
	}
	if got, err := ParseCertificates("chain", []byte(" \r\n"), 1); err != nil || len(got) != 0 {
		t.Errorf("nothing: got %x, %v", got, err)
	}
}

// FuzzCertificates demands that what is read can be written again, and is then
// the same certificates, whatever white space stood between.
func FuzzCertificates(f *testing.F) {
	text, _ := two()
	f.Add([]byte(text))
	f.Add([]byte(strings.ReplaceAll(text, "\n", "\r\n") + "\n"))
	f.Add([]byte(pemBegin + pemEnd))
	f.Fuzz(func(t *testing.T, text []byte) {
		ders, err := ParseCertificates("chain", text, 4)
		if err != nil {
			if !errors.Is(err, Malformed) {
				t.Fatalf("refused without its reason: %v", err)
			}
			return
		}
		if len(ders) == 0 {
			return
		}
		again, err := ParseCertificates("chain", NormalizePEM(text), 4)
		if err != nil || !bytes.Equal(bytes.Join(again, nil), bytes.Join(ders, nil)) || len(again) != len(ders) {
			t.Fatalf("written again: got %x, %v, want %x", again, err, ders)
		}
		if same := NormalizePEM(NormalizePEM(text)); !bytes.Equal(same, NormalizePEM(text)) {
			t.Fatalf("two spellings of one: %q", same)
		}
	})
}
