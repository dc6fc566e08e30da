package api

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/hpke"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

// hexBytes are bytes as the vectors write them.
type hexBytes []byte

func (h hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h)), nil }

func (h *hexBytes) UnmarshalText(text []byte) (err error) {
	*h, err = hex.DecodeString(string(text))
	return err
}

// vector is testdata/enrolment.json: one enrolment, byte by byte.
type vector struct {
	Note           string             `json:"note"`
	Request        CertificateRequest `json:"request"`
	Bound          hexBytes           `json:"bound"`       // framing whose SHA-512 is the report data
	ReportData     hexBytes           `json:"report_data"` // SHA-512 of it
	RequestDigest  hexBytes           `json:"request_digest"`
	HPKEPrivateKey hexBytes           `json:"hpke_private_key"`
	SealInfo       hexBytes           `json:"seal_info"`
	Sealed         SealedReport       `json:"sealed"`
	Plaintext      string             `json:"plaintext"`
	Message        hexBytes           `json:"report_message"` // what the signature covers
	SignerKey      hexBytes           `json:"signer_key"`     // SubjectPublicKeyInfo
	Rings          Rings              `json:"rings"`          // of the report
}

func readVector(t *testing.T) vector {
	t.Helper()
	b, err := os.ReadFile("testdata/enrolment.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vector
	if err := Decode(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestVector computes each value of docs/spec/enrolment.md from the request,
// opens the sealed report and checks its signature.
func TestVector(t *testing.T) {
	v := readVector(t)
	equal := func(what string, got, want []byte) {
		t.Helper()
		if !bytes.Equal(got, want) {
			t.Errorf("%s: got %x, want %x", what, got, want)
		}
	}
	bound := wire.Frame(wire.LabelIssue, v.Request.Bound()...)
	data := sha512.Sum512(bound)
	digest := v.Request.Digest()
	equal("bound", bound, v.Bound)
	equal("report data", data[:], v.ReportData)
	equal("request digest", digest[:], v.RequestDigest)
	equal("seal info", SealInfo(v.Request), v.SealInfo)
	plain, err := open(v, v.Request)
	if err != nil {
		t.Fatal(err)
	}
	equal("plaintext", plain, []byte(v.Plaintext))

	var signed SignedReport
	if err := json.Unmarshal(plain, &signed); err != nil {
		t.Fatal(err)
	}
	message := ReportMessage(signed.Report, digest)
	equal("report message", message, v.Message)
	key, err := x509.ParsePKIXPublicKey(v.SignerKey)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(message)
	if !ecdsa.VerifyASN1(key.(*ecdsa.PublicKey), sum[:], signed.Signature) {
		t.Error("the signature of the report does not hold")
	}
	var report Report
	if err := Decode(signed.Report, &report); err != nil {
		t.Fatal(err)
	}
	if got, want := report.Rings, v.Rings; !reflect.DeepEqual(got, want) {
		t.Errorf("got rings %+v, want %+v", got, want)
	}
}

func open(v vector, r CertificateRequest) ([]byte, error) {
	key, err := hpke.MLKEM768X25519().NewPrivateKey(v.HPKEPrivateKey)
	if err != nil {
		return nil, err
	}
	recipient, err := hpke.NewRecipient(v.Sealed.Encapsulated, key, hpke.HKDFSHA256(), hpke.AES256GCM(), SealInfo(r))
	if err != nil {
		return nil, err
	}
	return recipient.Open(nil, v.Sealed.Ciphertext)
}

// TestSealedToRequest changes each field of the request: the report no longer
// opens, for it answers another.
func TestSealedToRequest(t *testing.T) {
	v := readVector(t)
	if _, err := open(v, v.Request); err != nil {
		t.Fatalf("the report does not open for its own request: %v", err)
	}
	for name, change := range map[string]func(*CertificateRequest){
		"task":        func(r *CertificateRequest) { r.Task += "x" },
		"nonce":       func(r *CertificateRequest) { r.Nonce[0] ^= 1 },
		"HPKE key":    func(r *CertificateRequest) { r.HPKEKey[0] ^= 1 },
		"signing key": func(r *CertificateRequest) { r.SigningKey[0] ^= 1 },
		"CSR":         func(r *CertificateRequest) { r.CSR = append(r.CSR, 1) },
		"root":        func(r *CertificateRequest) { r.Root[0] ^= 1 },
		"head":        func(r *CertificateRequest) { r.Head[0] ^= 1 },
		"evidence":    func(r *CertificateRequest) { r.Evidence = append(r.Evidence, ' ') },
	} {
		t.Run(name, func(t *testing.T) {
			r := readVector(t).Request
			change(&r)
			if bytes.Equal(wire.Frame(wire.LabelIssue, r.Bound()...), v.Bound) != (name == "evidence") {
				t.Error("evidence is bound to the same fields after the change")
			}
			if _, err := open(v, r); err == nil {
				t.Error("the report opens for another request")
			}
		})
	}
}
