//go:build linux

package tpm

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Manufacturer states who made the TPM.
func (m Machine) Manufacturer() (who string, err error) {
	err = m.withTPM(func(t transport.TPM) error {
		response, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(tpm2.TPMPTManufacturer), PropertyCount: 1}.Execute(t)
		if err != nil {
			return absent(err)
		}
		properties, err := response.CapabilityData.Data.TPMProperties()
		if err != nil || len(properties.TPMProperty) == 0 {
			return absent(errors.New("it does not say who made it"))
		}
		v := properties.TPMProperty[0].Value
		who = strings.Trim(string([]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), "\x00 ")
		return nil
	})
	return m.Path + ", made by " + who, err
}

// Certificate names the endorsement key and who its certificate is under.
func (m Machine) Certificate() (text string, err error) {
	err = m.withTPM(func(t transport.TPM) error {
		d := &Device{machine: m}
		if err := d.findEndorsement(t); err != nil {
			return err
		}
		leaf, err := x509.ParseCertificate(d.in.Device)
		if err != nil {
			return err
		}
		text = fmt.Sprintf("%s, until %s, under %s", leaf.PublicKeyAlgorithm, leaf.NotAfter.UTC().Format("2006-01-02"), leaf.Issuer)
		return nil
	})
	return text, err
}

// CheckBank states that the SHA-256 bank holds every PCR that is quoted.
func (m Machine) CheckBank() (string, error) {
	return fmt.Sprintf("PCRs %v", quotedPCRs), m.withTPM(func(t transport.TPM) error {
		_, err := readPCRs(t, quotedPCRs)
		return err
	})
}

// MakesKeys states that an attestation key can be made. It launches nothing.
func (m Machine) MakesKeys() (string, error) {
	return "made one", m.withTPM(func(t transport.TPM) error {
		return new(Device).makeKey(t)
	})
}
