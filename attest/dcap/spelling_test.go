package dcap_test

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestSpellingOfCertificates: the text around certificates is not signed, and tools write it
// differently. White space may vary; other text is refused.
func TestSpellingOfCertificates(t *testing.T) {
	wide := func(text []byte) (out []byte) { // lines of 76 characters
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			body := base64.StdEncoding.EncodeToString(block.Bytes)
			out = append(out, "-----BEGIN CERTIFICATE-----\n"...)
			for at := 0; at < len(body); at += 76 {
				out = append(out, body[at:min(at+76, len(body))]+"\n"...)
			}
			out = append(out, "-----END CERTIFICATE-----\n"...)
		}
		return out
	}
	tests := []struct {
		name string
		text func([]byte) []byte
		want error
	}{
		{"CR LF", func(text []byte) []byte { return bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")) }, nil},
		{"lines of 76", wide, nil},
		{"no last line end", func(text []byte) []byte { return bytes.TrimSuffix(text, []byte("\n")) }, nil},
		{"an empty line at the end", func(text []byte) []byte { return append(text, '\n') }, nil},
		{"text between", func(text []byte) []byte {
			return bytes.Replace(text, []byte("-----\n-----"), []byte("-----\nissuer\n-----"), 1)
		}, wire.Malformed},
	}
	for _, of := range []attest.Platform{attest.TDX, attest.SGX} {
		for _, tt := range tests {
			t.Run(string(of)+", "+tt.name, func(t *testing.T) {
				s := newScene(of)
				s.vendor.Text = tt.text
				if _, err := s.appraise(t); !errors.Is(err, tt.want) {
					t.Errorf("err = %v, want %v", err, tt.want)
				}
			})
		}
	}
}
