package snp_test

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"math/big"
	"slices"
	"testing"
)

var two = big.NewInt(2) // serial number of the vendor's ASK

func attestHex(b []byte) string { return hex.EncodeToString(b) }

// change is the change that a row makes to a good scene.
type change = func(t *testing.T, s *scene)

// edit sets bytes of the report before it is signed.
func edit(offset int, bytes ...byte) change {
	return func(_ *testing.T, s *scene) { s.device.Edit = put(offset, bytes...) }
}

// flip flips a bit of the report after it is signed.
func flip(offset int) change {
	return func(t *testing.T, s *scene) {
		s.question.Evidence = s.evidence(t)
		s.question.Evidence.Raw[offset] ^= 1
	}
}

func without(role string) change {
	return func(_ *testing.T, s *scene) { delete(s.question.Endorsements, role) }
}

func replace(role string, content []byte) change {
	return func(_ *testing.T, s *scene) { s.question.Endorsements[role] = content }
}

// certificate changes the certificate with a common name before it is signed.
func certificate(name string, edit func(c *x509.Certificate)) change {
	return func(_ *testing.T, s *scene) {
		s.vendor.Edit = func(c *x509.Certificate) {
			if c.Subject.CommonName == name {
				edit(c)
			}
		}
		s.use(s.vendor.Chip(firmware))
	}
}

// extension changes the value of one of AMD's extensions in the VCEK, or removes it when value is
// nil.
func extension(which int, value []byte) change {
	return func(_ *testing.T, s *scene) {
		s.vendor.Edit = dropExtension("SEV-VCEK", which, value)
		s.use(s.vendor.Chip(firmware))
	}
}

func dropExtension(name string, which int, value []byte) func(c *x509.Certificate) {
	id := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, which}
	return func(c *x509.Certificate) {
		if c.Subject.CommonName != name {
			return
		}
		for i, e := range c.ExtraExtensions {
			if e.Id.Equal(id) && value != nil {
				c.ExtraExtensions[i].Value = value
			} else if e.Id.Equal(id) {
				c.ExtraExtensions = slices.Delete(c.ExtraExtensions, i, i+1)
				return
			}
		}
	}
}
