package wire

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
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

// SumPEM returns the SHA-256 of certificates in PEM without the white space that
// [ParseCertificates] allows, and of any other text as it is. Caches by the digest of a text
// use it, so that texts with the same certificates share an entry, and no text that is refused
// shares one with them. It decodes nothing.
func SumPEM(text []byte) Digest {
	h := sha256.New()
	for rest := text; len(rest) > 0; {
		n := bytes.IndexAny(rest, pemSpace+"-")
		switch {
		case n < 0:
			n = len(rest)
		case n > 0: // the run before it
		case rest[0] != '-':
			rest = rest[1:]
			continue
		case bytes.HasPrefix(rest, []byte(pemBegin)):
			n = len(pemBegin)
		case bytes.HasPrefix(rest, []byte(pemEnd)):
			n = len(pemEnd)
		default:
			return Sum(text)
		}
		h.Write(rest[:n])
		rest = rest[n:]
	}
	return Digest(h.Sum(nil))
}
