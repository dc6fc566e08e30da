package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
)

func encode(der []byte) string { return base64.StdEncoding.EncodeToString(der) }

// two are certificates' bytes, as PEM in lines of 64 characters.
func two() (text string, ders [][]byte) {
	ders = [][]byte{bytes.Repeat([]byte{1, 2, 3, 4, 5}, 30), {9}}
	for _, der := range ders {
		text += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
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
		if got, want := SumPEM([]byte(spelled)), SumPEM([]byte(text)); got != want {
			t.Errorf("%s: got digest %s, want %s", name, got, want)
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
		if SumPEM([]byte(spelled)) == SumPEM([]byte(text)) {
			t.Errorf("%s: got the digest of the certificates", name)
		}
	}
	if _, err := ParseCertificates("chain", []byte(text), 1); !errors.Is(err, Malformed) {
		t.Errorf("one too many: %v, want reason %q", err, Malformed)
	}
	if got, err := ParseCertificates("chain", []byte(" \r\n"), 1); err != nil || len(got) != 0 {
		t.Errorf("nothing: got %x, %v", got, err)
	}
}

// FuzzCertificates demands that a text which is read shares its digest with its certificates in
// lines of 64, and a text which is refused with none.
func FuzzCertificates(f *testing.F) {
	text, _ := two()
	f.Add([]byte(text))
	f.Add([]byte(strings.ReplaceAll(text, "\n", "\r\n") + "\n"))
	f.Add([]byte(strings.ReplaceAll(text, " ", "  ")))
	f.Add([]byte(pemBegin + pemEnd))
	f.Fuzz(func(t *testing.T, text []byte) {
		ders, err := ParseCertificates("chain", text, 4)
		if err != nil && !errors.Is(err, Malformed) {
			t.Fatalf("refused without its reason: %v", err)
		}
		if err == nil {
			var same []byte
			for _, der := range ders {
				same = append(same, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
			}
			if got, want := SumPEM(text), SumPEM(same); got != want {
				t.Fatalf("got digest %s, want %s", got, want)
			}
			return
		}
		plain := bytes.Join(bytes.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(pemSpace, r) }), nil)
		plain = bytes.ReplaceAll(bytes.ReplaceAll(plain, []byte("BEGINCERTIFICATE"), []byte("BEGIN CERTIFICATE")), []byte("ENDCERTIFICATE"), []byte("END CERTIFICATE"))
		if _, err := ParseCertificates("chain", plain, 4); err == nil && SumPEM(text) == SumPEM(plain) {
			t.Fatalf("%q shares the digest of the certificates %q", text, plain)
		}
	})
}
