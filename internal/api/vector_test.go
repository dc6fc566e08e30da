package api

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hpke"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

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

var update = flag.Bool("update", false, "compute what follows from the requests of testdata/enrolment*.json anew")

// vectorFiles are one enrolment for a task, and one for a role in a group.
var vectorFiles = []string{"testdata/enrolment.json", "testdata/enrolment-group.json"}

func readVector(t *testing.T, file string) vector {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var v vector
	if err := Decode(b, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// updateVector computes a vector from its request, the key that opens its report,
// and the report in its plaintext, and writes it.
func updateVector(t *testing.T, file string, v vector) {
	t.Helper()
	key := sha256.Sum256([]byte("signer of enrolment vectors"))
	signer, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), key[:])
	if err != nil {
		t.Fatal(err)
	}
	var signed SignedReport
	if err := json.Unmarshal([]byte(v.Plaintext), &signed); err != nil {
		t.Fatal(err)
	}
	v.Bound = wire.Frame(wire.LabelIssue, v.Request.Bound()...)
	data, digest := sha512.Sum512(v.Bound), v.Request.Digest()
	v.ReportData, v.RequestDigest, v.SealInfo = data[:], digest[:], SealInfo(v.Request, v.Sealed.GroupRoot)
	v.Message = ReportMessage(signed.Report, digest)
	sum := sha256.Sum256(v.Message)
	if signed.Signature, err = ecdsa.SignASN1(rand.Reader, signer, sum[:]); err != nil {
		t.Fatal(err)
	}
	plain, err := json.Marshal(signed)
	if err != nil {
		t.Fatal(err)
	}
	v.Plaintext = string(plain)
	recipient, err := hpke.MLKEM768X25519().NewPublicKey(v.Request.HPKEKey)
	if err != nil {
		t.Fatal(err)
	}
	enc, sender, err := hpke.NewSender(recipient, hpke.HKDFSHA256(), hpke.AES256GCM(), v.SealInfo)
	if err != nil {
		t.Fatal(err)
	}
	v.Sealed.Encapsulated = enc
	if v.Sealed.Ciphertext, err = sender.Seal(nil, plain); err != nil {
		t.Fatal(err)
	}
	if v.SignerKey, err = x509.MarshalPKIXPublicKey(signer.Public()); err != nil {
		t.Fatal(err)
	}
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	var spread bytes.Buffer // the evidence is bound as it stands, without spaces
	if err := json.Indent(&spread, v.Request.Evidence, "    ", "  "); err != nil {
		t.Fatal(err)
	}
	b = bytes.Replace(b, spread.Bytes(), v.Request.Evidence, 1)
	if err := os.WriteFile(file, append(b, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestVector computes each value of docs/spec/enrolment.md from the request,
// opens the sealed report and checks its signature.
func TestVector(t *testing.T) {
	for _, file := range vectorFiles {
		t.Run(filepath.Base(file), func(t *testing.T) {
			if *update {
				updateVector(t, file, readVector(t, file))
			}
			checkVector(t, readVector(t, file))
		})
	}
}

func checkVector(t *testing.T, v vector) {
	t.Helper()
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
	equal("seal info", SealInfo(v.Request, v.Sealed.GroupRoot), v.SealInfo)
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
	recipient, err := hpke.NewRecipient(v.Sealed.Encapsulated, key, hpke.HKDFSHA256(), hpke.AES256GCM(), SealInfo(r, v.Sealed.GroupRoot))
	if err != nil {
		return nil, err
	}
	return recipient.Open(nil, v.Sealed.Ciphertext)
}

// TestSealedToRequest changes each field of the request: the report no longer
// opens, for it answers another.
func TestSealedToRequest(t *testing.T) {
	v := readVector(t, vectorFiles[1])
	if _, err := open(v, v.Request); err != nil {
		t.Fatalf("the report does not open for its own request: %v", err)
	}
	for name, change := range map[string]func(*CertificateRequest){
		"task":        func(r *CertificateRequest) { r.Task, r.Group = r.Group, "" },
		"group":       func(r *CertificateRequest) { r.Group += "x" },
		"role":        func(r *CertificateRequest) { r.Role += "x" },
		"party key":   func(r *CertificateRequest) { r.PartyKeys[0][0] ^= 1 },
		"no party":    func(r *CertificateRequest) { r.PartyKeys = nil },
		"more keys":   func(r *CertificateRequest) { r.PartyKeys = append(r.PartyKeys, r.PartyKeys[0]) },
		"roster":      func(r *CertificateRequest) { r.Roster[0] ^= 1 },
		"nonce":       func(r *CertificateRequest) { r.Nonce[0] ^= 1 },
		"HPKE key":    func(r *CertificateRequest) { r.HPKEKey[0] ^= 1 },
		"signing key": func(r *CertificateRequest) { r.SigningKey[0] ^= 1 },
		"CSR":         func(r *CertificateRequest) { r.CSR = append(r.CSR, 1) },
		"root":        func(r *CertificateRequest) { r.Root[0] ^= 1 },
		"head":        func(r *CertificateRequest) { r.Head[0] ^= 1 },
		"evidence":    func(r *CertificateRequest) { r.Evidence = append(r.Evidence, ' ') },
	} {
		t.Run(name, func(t *testing.T) {
			r := readVector(t, vectorFiles[1]).Request
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

// leaveVector is testdata/leave.json: one leave request, byte by byte.
type leaveVector struct {
	Note       string       `json:"note"`
	Root       wire.Digest  `json:"authority_root"`
	SigningKey hexBytes     `json:"signing_key"` // SubjectPublicKeyInfo
	Message    hexBytes     `json:"message"`     // what the signature covers
	Request    LeaveRequest `json:"request"`
}

// TestLeaveVector computes the message of docs/spec/enrolment.md, section 9, and checks the
// signature and the unit id.
func TestLeaveVector(t *testing.T) {
	b, err := os.ReadFile("testdata/leave.json")
	if err != nil {
		t.Fatal(err)
	}
	var v leaveVector
	if err := Decode(b, &v); err != nil {
		t.Fatal(err)
	}
	if got := LeaveMessage(v.Request.Unit, v.Request.Time, v.Root); !bytes.Equal(got, v.Message) {
		t.Errorf("got message %x, want %x", got, v.Message)
	}
	if got := wire.UnitIDOf(v.SigningKey); got != v.Request.Unit {
		t.Errorf("got unit %v, want %v", got, v.Request.Unit)
	}
	key, err := x509.ParsePKIXPublicKey(v.SigningKey)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(v.Message)
	if !ecdsa.VerifyASN1(key.(*ecdsa.PublicKey), digest[:], v.Request.Signature) {
		t.Error("the signature does not verify")
	}
}

// TestLeaveMessages: no two leave requests say the same, at both ends of each field.
func TestLeaveMessages(t *testing.T) {
	seen := map[string]bool{}
	n := 0
	for _, unit := range []wire.UnitID{{}, {1}, {15: 1}} {
		for _, at := range []int64{0, 1, 1 << 31, 1<<32 - 1, 1<<63 - 1, -1 << 63, -1} {
			for _, root := range []wire.Digest{{}, {1}} {
				seen[string(LeaveMessage(unit, time.Unix(at, 0), root))] = true
				n++
			}
		}
	}
	if len(seen) != n {
		t.Errorf("got %d messages of %d requests", len(seen), n)
	}
}
