package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

func csr(t testing.TB, template *x509.CertificateRequest, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestCSRKey(t *testing.T) {
	key := unitKey("tls")
	got, err := CSRKey(csr(t, &x509.CertificateRequest{}, key))
	if err != nil {
		t.Fatal(err)
	}
	if !key.PublicKey.Equal(got) {
		t.Errorf("got %v, want the key of the request", got)
	}
}

// TestCSRRefusals is THREATS case 7: a CSR with any content besides the key is refused, not
// trimmed.
func TestCSRRefusals(t *testing.T) {
	key := unitKey("tls")
	plain := csr(t, &x509.CertificateRequest{}, key)
	edit := func(f func([]byte) []byte) []byte { return f(bytes.Clone(plain)) }
	basic := func(ca bool) []byte {
		value := testworld.Must(asn1.Marshal(struct {
			IsCA bool `asn1:"optional"`
		}{ca}))
		return csr(t, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: value}}}, key)
	}
	attribute := pkix.AttributeTypeAndValueSET{
		Type:  asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 2}, // unstructuredName
		Value: [][]pkix.AttributeTypeAndValue{{{Type: asn1.ObjectIdentifier{2, 5, 4, 3}, Value: "x"}}},
	}
	tests := []struct {
		name string
		der  []byte
	}{
		{"nothing", nil},
		{"a certificate", newWorld(t, 'a').issuer.AuthorityRoot()},
		{"name", csr(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "x"}}, key)},
		{"DNS name", csr(t, &x509.CertificateRequest{DNSNames: []string{"scoring.clinic.example"}}, key)},
		{"group in a URI", csr(t, &x509.CertificateRequest{URIs: parseURIs("spiffe://clinic.example/group/trial/role/holder")}, key)},
		{"CA flag", basic(true)},
		{"CA flag off", basic(false)},
		{"our extension", csr(t, &x509.CertificateRequest{ExtraExtensions: []pkix.Extension{{Id: extensionOID, Value: []byte{4, 0}}}}, key)},
		{"attribute", csr(t, &x509.CertificateRequest{Attributes: []pkix.AttributeTypeAndValueSET{attribute}}, key)},
		{"attributes left out", noAttributes(t, key)},
		{"RSA", csr(t, &x509.CertificateRequest{}, testworld.Must(rsa.GenerateKey(rand.Reader, 2048)))},
		{"Ed25519", csr(t, &x509.CertificateRequest{}, ed25519.NewKeyFromSeed(make([]byte, 32)))},
		{"P-384", csr(t, &x509.CertificateRequest{}, testworld.Must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)))},
		{"P-384 with SHA-256", csr(t, &x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA256}, testworld.Must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)))},
		{"SHA-384", csr(t, &x509.CertificateRequest{SignatureAlgorithm: x509.ECDSAWithSHA384}, key)},
		{"bad signature", edit(func(b []byte) []byte { b[len(b)-1] ^= 1; return b })},
		{"another key", edit(func(b []byte) []byte {
			return bytes.Replace(b, testworld.Must(key.PublicKey.Bytes()), testworld.Must(unitKey("other").PublicKey.Bytes()), 1)
		})},
		{"trailing byte", append(bytes.Clone(plain), 0)},
		{"cut", plain[:len(plain)-1]},
		{"long length form", edit(func(b []byte) []byte { return append([]byte{0x30, 0x82, 0}, b[2:]...) })},
		{"5 KiB", append(bytes.Clone(plain), make([]byte, 5<<10)...)},
		{"5 KiB of names", csr(t, &x509.CertificateRequest{DNSNames: []string{string(bytes.Repeat([]byte("x"), 5<<10))}}, key)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := CSRKey(tt.der)
			testworld.Refused(t, err, wire.BadCSR)
			if got != nil {
				t.Errorf("got key %v beside the error, want none", got)
			}
		})
	}
}

// noAttributes returns a request without the empty attributes that RFC 2986 requires; its
// signature verifies.
func noAttributes(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	info := testworld.Must(asn1.Marshal(struct {
		Version int
		Subject pkix.RDNSequence
		Key     asn1.RawValue
	}{Subject: pkix.RDNSequence{}, Key: asn1.RawValue{FullBytes: publicKeyInfo(&key.PublicKey)}}))
	digest := wire.Sum(info)
	signature := testworld.Must(ecdsa.SignASN1(rand.Reader, key, digest[:]))
	return testworld.Must(asn1.Marshal(struct {
		Info      asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: info},
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
		asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)},
	}))
}

// TestCSROfOpenSSL: a plain request of OpenSSL is accepted.
func TestCSROfOpenSSL(t *testing.T) {
	openssl := findOpenSSL(t)
	dir := t.TempDir()
	key, out := filepath.Join(dir, "key.pem"), filepath.Join(dir, "csr.der")
	config := filepath.Join(dir, "config")
	if err := os.WriteFile(config, []byte("[req]\ndistinguished_name=dn\nprompt=no\n[dn]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", key},
		{"req", "-new", "-config", config, "-key", key, "-subj", "/", "-outform", "DER", "-out", out},
	} {
		if b, err := exec.Command(openssl, args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v: %s", args, err, b)
		}
	}
	if _, err := CSRKey(testworld.Must(os.ReadFile(out))); err != nil {
		t.Fatal(err)
	}
}

func FuzzCSRKey(f *testing.F) {
	key := unitKey("tls")
	f.Add(csr(f, &x509.CertificateRequest{}, key))
	f.Add(csr(f, &x509.CertificateRequest{DNSNames: []string{"x"}}, key))
	f.Fuzz(func(t *testing.T, der []byte) {
		public, err := CSRKey(der)
		if err != nil {
			if got := wire.ReasonOf(err); got != wire.BadCSR {
				t.Fatalf("got reason %q, want %q", got, wire.BadCSR)
			}
			return
		}
		request := testworld.Must(x509.ParseCertificateRequest(der))
		again := plainRequest(publicKeyInfo(public.(*ecdsa.PublicKey)), request.Signature)
		if !bytes.Equal(again, der) {
			t.Fatalf("got %x from accepted %x, want the same bytes", again, der)
		}
	})
}
