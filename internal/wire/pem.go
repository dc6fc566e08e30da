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

// pemSpace is the white space that is allowed anywhere between and inside certificates: it is
// not signed, and tools differ in width and line ends.
const pemSpace = " \t\r\n"

// ParseCertificates parses at most most certificates in PEM (RFC 7468) and returns their
// unparsed DER. White space is allowed anywhere but in the lines that begin and end a
// certificate; all other text has one encoding, and is otherwise refused with reason
// "malformed". An empty text returns no certificates.
func ParseCertificates(of string, text []byte, most int) ([][]byte, error) {
	var ders [][]byte
	for rest := bytes.Trim(text, pemSpace); len(rest) > 0; rest = bytes.TrimLeft(rest, pemSpace) {
		body, begun := bytes.CutPrefix(rest, []byte(pemBegin))
		body, after, ended := bytes.Cut(body, []byte(pemEnd))
		if !begun || !ended {
			return nil, Refuse(Malformed, of, "text outside certificates", "certificates in PEM and nothing else")
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

// NormalizePEM returns a text of certificates in one normal form, and any other text
// unchanged. Caches by a digest of the text use it, so that texts with the same certificates
// share an entry.
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
