package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"slices"
)

const (
	pemBegin = "-----BEGIN CERTIFICATE-----"
	pemEnd   = "-----END CERTIFICATE-----"
)

// pemSpace is what the text between and inside certificates may have anywhere:
// nobody signs it, and tools differ in width and ends of lines.
const pemSpace = " \t\r\n"

// ParseCertificates reads at most so many certificates in PEM (RFC 7468) and gives
// their DER, unparsed. White space may stand anywhere but in the lines that begin
// and end a certificate; all else has one encoding, and any other text is refused
// with reason "malformed". None at all is no refusal.
func ParseCertificates(of string, text []byte, most int) ([][]byte, error) {
	var ders [][]byte
	for rest := bytes.Trim(text, pemSpace); len(rest) > 0; rest = bytes.TrimLeft(rest, pemSpace) {
		body, begun := bytes.CutPrefix(rest, []byte(pemBegin))
		body, after, ended := bytes.Cut(body, []byte(pemEnd))
		if !begun || !ended {
			return nil, Refuse(Malformed, of, "other text", "certificates in PEM and nothing else")
		}
		if len(ders) == most {
			return nil, Refuse(Malformed, of, "more certificates", most)
		}
		der, err := base64.StdEncoding.Strict().DecodeString(string(slices.DeleteFunc(bytes.Clone(body), isPEMSpace)))
		if err != nil || len(der) == 0 {
			return nil, Refuse(Malformed, of, "a certificate that is not base64", "certificates in PEM and nothing else")
		}
		ders, rest = append(ders, der), after
	}
	return ders, nil
}

func isPEMSpace(b byte) bool { return bytes.IndexByte([]byte(pemSpace), b) >= 0 }

// NormalizePEM is a text of certificates in the one spelling that all its spellings
// share, and any other text as it is. Whoever remembers by a digest of the text
// takes this, or each spelling would be remembered for itself.
func NormalizePEM(text []byte) []byte {
	ders, err := ParseCertificates("", text, len(text))
	if err != nil || len(ders) == 0 {
		return text
	}
	var same []byte
	for _, der := range ders {
		same = append(same, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return same
}
