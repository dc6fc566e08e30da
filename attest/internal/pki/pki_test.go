package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

var (
	noon   = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	vendor = Vendor{Name: "test", Algorithm: x509.ECDSAWithSHA256, ListAlgorithms: []x509.SignatureAlgorithm{x509.ECDSAWithSHA256}}
)

// authority returns a root of the vendor with its key.
func authority(t *testing.T) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: noon, NotAfter: noon.AddDate(1, 0, 0), SubjectKeyId: []byte{1},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SignatureAlgorithm: vendor.Algorithm,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key
}

// TestListOfCriticalExtension: a list with an unknown critical extension is refused, because the
// extension may limit the list to some certificates.
func TestListOfCriticalExtension(t *testing.T) {
	issuer, key := authority(t)
	place := pkix.Extension{Id: []int{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}
	der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: noon, NextUpdate: noon.Add(time.Hour), ExtraExtensions: []pkix.Extension{place},
		RevokedCertificateEntries: []x509.RevocationListEntry{{SerialNumber: big.NewInt(1), RevocationTime: noon}},
	}, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, known := range []func(pkix.Extension) bool{nil, func(pkix.Extension) bool { return false }} {
		if _, err := vendor.ParseRevocationList(der, issuer, known); !errors.Is(err, wire.Malformed) {
			t.Errorf("got %v, want %q", err, wire.Malformed)
		}
	}
	list, err := vendor.ParseRevocationList(der, issuer, func(e pkix.Extension) bool { return e.Id.Equal(place.Id) })
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckNotRevoked(issuer); !errors.Is(err, wire.Revoked) {
		t.Errorf("got %v, want %q", err, wire.Revoked)
	}
	if !NewestIssue(append(Validities(issuer), list.Validity)...).Equal(noon) {
		t.Error("the list was not issued at its ThisUpdate")
	}
}

// TestUnsignedBytes: bytes after a list or certificate, and inside it after its signature, are
// refused: no signature covers them.
func TestUnsignedBytes(t *testing.T) {
	issuer, key := authority(t)
	list, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: noon, NextUpdate: noon.Add(time.Hour)}, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	readList := func(der []byte) error { _, err := vendor.ParseRevocationList(der, issuer, nil); return err }
	readCertificate := func(der []byte) error {
		_, err := vendor.Certificates("chain", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 1)
		return err
	}
	for _, of := range []struct {
		name string
		der  []byte
		read func([]byte) error
	}{{"list", list, readList}, {"certificate", issuer.Raw, readCertificate}} {
		var parts []asn1.RawValue
		if _, err := asn1.Unmarshal(of.der, &parts); err != nil {
			t.Fatal(err)
		}
		longer, err := asn1.Marshal(append(parts, asn1.NullRawValue))
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range []struct {
			name string
			der  []byte
			want error
		}{
			{"as signed", of.der, nil},
			{"a zero after it", append(bytes.Clone(of.der), 0), wire.Malformed},
			{"a second one after it", append(bytes.Clone(of.der), of.der...), wire.Malformed},
			{"NULL after the signature", longer, wire.Malformed},
		} {
			if err := of.read(row.der); !errors.Is(err, row.want) {
				t.Errorf("%s, %s: got %v, want %v", of.name, row.name, err, row.want)
			}
		}
	}
}

// TestShortKeys: an issuer with an RSA key below 2,048 bits is refused, in a chain and in a path.
func TestShortKeys(t *testing.T) {
	maker := Vendor{Name: "test", Algorithm: x509.SHA256WithRSA}
	for bits, want := range map[int]error{1024: wire.BadChain, 2040: wire.BadChain, 2048: nil} {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		issue := func(template *x509.Certificate, parent *x509.Certificate) *x509.Certificate {
			der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, key)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			return cert
		}
		template := x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, NotBefore: noon, NotAfter: noon.AddDate(1, 0, 0), SubjectKeyId: []byte{1},
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SignatureAlgorithm: maker.Algorithm,
		}
		root := issue(&template, &template)
		leaf := issue(&x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: noon, NotAfter: noon.AddDate(1, 0, 0)}, root)
		if err := maker.VerifyChain(leaf, root); !errors.Is(err, want) {
			t.Errorf("a chain with a key of %d bits: got %v, want %v", bits, err, want)
		}
		if _, err := maker.FindPath(leaf, []*x509.Certificate{root}, nil, noon); !errors.Is(err, want) {
			t.Errorf("a path with a key of %d bits: got %v, want %v", bits, err, want)
		}
	}
}

func TestInTime(t *testing.T) {
	certificate := Validity{Of: "a certificate", From: noon, Until: noon.Add(time.Hour)}
	list := Validity{Of: "a list", From: noon, Until: noon.Add(time.Hour), Issued: true}
	for _, c := range []struct {
		of     Validity
		after  time.Duration
		counts bool
	}{
		{certificate, -1, false}, {certificate, 0, true}, {certificate, time.Hour, true}, {certificate, time.Hour + 1, false},
		{list, -2*time.Minute - 1, false}, {list, -2 * time.Minute, true}, {list, time.Hour, true}, {list, time.Hour + 1, false},
	} {
		err := vendor.CheckValidity(noon.Add(c.after), Validity{Until: noon.AddDate(1, 0, 0)}, c.of)
		if (err == nil) != c.counts || err != nil && !errors.Is(err, wire.Expired) {
			t.Errorf("%s, %v after it begins: got %v, want it to count: %v", c.of.Of, c.after, err, c.counts)
		}
	}
}

func TestCacheIsBounded(t *testing.T) {
	var c Cache[int, int]
	for i := range 20 {
		c.Store(i, i, 10)
		c.Store(i, -i, 10) // an existing key needs no more room
		if got, known := c.Load(i); !known || got != -i {
			t.Errorf("got %d, %v, want %d", got, known, -i)
		}
	}
	if len(c.all) != 10 {
		t.Errorf("got %d values, want 10", len(c.all))
	}
	if _, known := c.Load(20); known {
		t.Error("what was never put is there")
	}
}
