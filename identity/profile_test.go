package identity

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// byLibrary returns the certificate that crypto/x509 makes of the same content. It first makes
// one with serial number 1: the final serial number is derived from its signed part.
func (s signer) byLibrary(t *testing.T, c certificateContent) []byte {
	t.Helper()
	public := testworld.Must(x509.ParsePKIXPublicKey(c.spki))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), SignatureAlgorithm: x509.ECDSAWithSHA256, RawSubject: c.name, SubjectKeyId: keyID(c.spki),
		NotBefore: c.notBefore, NotAfter: c.notAfter, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, DNSNames: c.names,
		ExtraExtensions: []pkix.Extension{{Id: extensionOID, Value: testworld.Must(c.extension.encode())}},
	}
	if c.tls {
		template.ExtKeyUsage = tlsUsage
	}
	if depth, isCA := pathLen[c.extension.kind]; isCA {
		template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign
		template.MaxPathLen, template.MaxPathLenZero = depth, depth == 0
	} else {
		template.URIs = []*url.URL{spiffe(c.domain, c.path)}
	}
	parent := &x509.Certificate{RawSubject: s.name, SubjectKeyId: keyID(s.spki)}
	create := func() []byte { return testworld.Must(x509.CreateCertificate(nil, template, parent, public, s.key)) }
	template.SerialNumber = serial(s.spki, parse(t, create())[0].RawTBSCertificate)
	return create()
}

// TestCertificatesAreThoseOfTheLibrary: this package's encoder and crypto/x509 write the same
// bytes.
func TestCertificatesAreThoseOfTheLibrary(t *testing.T) {
	w := newWorld(t, 'a')
	ca := w.issuer.known[w.policy.Document().Tasks["scoring"].Releases["2026.11"]].ca
	root := w.issuer.caContent(ca, extension{kind: kindIdentityRoot, id: attest.Digest{1}, task: "scoring", measurements: w.policy.Document().Authority.References})
	cross := root
	cross.extension.kind = kindCross
	leaf := certificateContent{
		name: subject("scoring", attest.Digest{1}, "clinic.example"), spki: publicKeyInfo(&unitKey("tls").PublicKey),
		notBefore: noon, notAfter: noon.Add(time.Hour), domain: "clinic.example", path: wire.TaskPath("scoring"), tls: true, names: []string{"a.example"},
		extension: extension{kind: KindUnit, id: attest.Digest{1}, task: "scoring", keyMode: policyfile.PerUnit, head: attest.Digest{2}, unit: wire.UnitID{3}, platform: attest.SNP},
	}
	rows := []struct {
		name string
		by   signer
		certificateContent
		edit func(*certificateContent)
	}{
		{"authority root", w.issuer.signer, w.issuer.caContent(w.issuer.signer, extension{kind: kindAuthorityRoot}), nil},
		{"identity root", ca, root, nil},
		{"cross-certificate", w.issuer.signer, cross, nil},
		{"leaf", ca, leaf, nil},
		{"leaf that serves no TLS", ca, leaf, func(c *certificateContent) { c.tls = false }},
		{"no DNS names", ca, leaf, func(c *certificateContent) { c.names = nil }},
		{"100 DNS names", ca, leaf, func(c *certificateContent) { c.names = strings.Fields(strings.Repeat("name.clinic.example ", 100)) }},
		{"times after 2049", ca, leaf, func(c *certificateContent) {
			c.notBefore, c.notAfter = time.Date(2049, 12, 31, 23, 59, 59, 0, time.UTC), time.Date(2050, 1, 1, 0, 0, 0, 0, time.UTC)
		}},
	}
	for size := 1; size <= maxChip; size += 17 { // covers every length of a DER length
		rows = append(rows, struct {
			name string
			by   signer
			certificateContent
			edit func(*certificateContent)
		}{fmt.Sprint("chip of ", size, " bytes"), ca, leaf, func(c *certificateContent) { c.extension.chip = strings.Repeat("c", size) }})
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			if r.edit != nil {
				r.edit(&r.certificateContent)
			}
			got, number, err := r.by.signCertificate(r.certificateContent)
			if err != nil {
				t.Fatal(err)
			}
			if want := r.by.byLibrary(t, r.certificateContent); !bytes.Equal(got, want) {
				t.Errorf("got  %x\nwant %x", got, want)
			}
			if want := parse(t, got)[0].SerialNumber; number.Cmp(want) != 0 {
				t.Errorf("serial number: got %v, want %v", number, want)
			}
		})
	}
}
