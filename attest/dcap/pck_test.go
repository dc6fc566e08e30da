package dcap

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"slices"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
)

type field struct {
	ID    asn1.ObjectIdentifier
	Value any
}

// sgx returns an object identifier below that of the SGX extension.
func sgx(arcs ...int) asn1.ObjectIdentifier { return append(slices.Clone(oidSGX), arcs...) }

// fields returns the fields of a good extension.
func fields() []field {
	var tcb []field
	for i := range 17 {
		tcb = append(tcb, field{sgx(2, i+1), i})
	}
	return []field{{sgx(1), make([]byte, 16)}, {sgx(2), tcb}, {sgx(3), make([]byte, 2)}, {sgx(4), make([]byte, 6)}, {sgx(9), 0}}
}

func TestPCKExtension(t *testing.T) {
	svn := func(arc, value int) func(f []field) []field {
		return func(f []field) []field { f[1].Value.([]field)[arc-1].Value = value; return f }
	}
	tests := []struct {
		name   string
		change func(f []field) []field
		ok     bool
	}{
		{"good", func(f []field) []field { return f }, true},
		{"highest component", svn(16, 0xff), true},
		{"highest PCE SVN", svn(17, 0xffff), true},
		{"component too high", svn(16, 0x100), false},
		{"component below zero", svn(1, -1), false},
		{"PCE SVN too high", svn(17, 0x10000), false},
		{"a component less", func(f []field) []field { f[1].Value = f[1].Value.([]field)[1:]; return f }, false},
		{"a field twice", func(f []field) []field { return append(f, f[0]) }, false},
		{"an unused field twice", func(f []field) []field { return append(f, f[4]) }, false},
		{"a field from elsewhere", func(f []field) []field { f[4].ID = asn1.ObjectIdentifier{1, 2, 99}; return f }, false},
		{"short PPID", func(f []field) []field { f[0].Value = make([]byte, 15); return f }, false},
		{"long FMSPC", func(f []field) []field { f[3].Value = make([]byte, 7); return f }, false},
		{"FMSPC that is a number", func(f []field) []field { f[3].Value = 6; return f }, false},
		{"no PCE id", func(f []field) []field { return slices.Delete(f, 2, 3) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			der, err := asn1.Marshal(tt.change(fields()))
			if err != nil {
				t.Fatal(err)
			}
			got, err := readPCK(der)
			if tt.ok != (err == nil) || err != nil && !errors.Is(err, wire.BadChain) {
				t.Errorf("read %+v, err = %v, want accepted %v", got, err, tt.ok)
			}
		})
	}
}

// TestKeyOfCertificates: only P-256 keys are accepted.
func TestKeyOfCertificates(t *testing.T) {
	for curve, want := range map[elliptic.Curve]bool{elliptic.P256(): true, elliptic.P384(): false} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		root := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: nameRoot}, SignatureAlgorithm: x509.ECDSAWithSHA256,
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: nameSigning}, SignatureAlgorithm: x509.ECDSAWithSHA256}
		var certs []*x509.Certificate
		for _, template := range []*x509.Certificate{leaf, root} {
			der, err := x509.CreateCertificate(rand.Reader, template, root, &key.PublicKey, key)
			if err != nil {
				t.Fatal(err)
			}
			cert, err := x509.ParseCertificate(der)
			if err != nil {
				t.Fatal(err)
			}
			certs = append(certs, cert)
		}
		got, err := verifyChain("a chain", certs, []string{nameSigning}, []string{nameRoot})
		if (err == nil) != want || err != nil && !errors.Is(err, wire.BadChain) || want && !got.Equal(&key.PublicKey) {
			t.Errorf("%s: err = %v, want accepted %v", curve.Params().Name, err, want)
		}
	}
}
