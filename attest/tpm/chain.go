package tpm

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/pki"
	"github.com/cohort-tee/cohort/internal/wire"
)

var (
	// oidEK is the extended key usage of endorsement keys (TCG EK credential
	// profile, section 3.2).
	oidEK = asn1.ObjectIdentifier{2, 23, 133, 8, 1}
	// oidSAN is critical in certificates without a subject, and names the
	// device in a form that Go does not read.
	oidSAN = asn1.ObjectIdentifier{2, 5, 29, 17}
)

// maker is any maker of TPMs. They sign by algorithms of their own choice.
var maker = pki.Vendor{Name: "tpm"}

// device is a TPM whose endorsement key an authority vouches for.
type device struct {
	chip        attest.Digest // of the endorsement key's SubjectPublicKeyInfo
	name        string        // the same, for people
	root        attest.Digest // of the authority's
	from, until time.Time     // when all certificates are valid
}

// maxCA bounds the certificates above an endorsement key's.
const maxCA = 8

// checkDevice finds a chain from the certificate of an endorsement key to an
// authority that is named.
func checkDevice(der, bundle []byte, roots []attest.Digest, at time.Time) (*device, error) {
	leaf, err := parseEK(der)
	if err != nil {
		return nil, err
	}
	above, err := maker.Certificates(roleCA, bundle, maxCA)
	if err != nil {
		return nil, err
	}
	var named, between []*x509.Certificate
	for _, c := range above {
		if slices.Contains(roots, wire.Sum(c.RawSubjectPublicKeyInfo)) {
			named = append(named, c)
		} else {
			between = append(between, c)
		}
	}
	if len(named) == 0 {
		return nil, wire.Refuse(wire.UnknownRoot, "tpm: authority of the endorsement key", leaf.Issuer, "one that policy names, among "+roleCA)
	}
	chain, err := maker.FindPath(leaf, named, between, at)
	if err != nil {
		return nil, err
	}
	return deviceOf(chain), nil
}

func deviceOf(chain []*x509.Certificate) *device {
	leaf, root := chain[0], chain[len(chain)-1]
	d := &device{chip: wire.Sum(leaf.RawSubjectPublicKeyInfo), root: wire.Sum(root.RawSubjectPublicKeyInfo), from: leaf.NotBefore, until: leaf.NotAfter}
	d.name = d.chip.Hex()
	for _, c := range chain[1:] {
		if c.NotBefore.After(d.from) {
			d.from = c.NotBefore
		}
		if c.NotAfter.Before(d.until) {
			d.until = c.NotAfter
		}
	}
	return d
}

// parseEK reads the certificate of an endorsement key.
func parseEK(der []byte) (*x509.Certificate, error) {
	leaf, err := pki.ParseCertificate(der)
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "tpm: certificate of the endorsement key", err, "DER")
	}
	if leaf.IsCA || !slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidEK.Equal) {
		return nil, wire.Refuse(wire.BadChain, "tpm: use of the endorsement key's certificate", leaf.UnknownExtKeyUsage, oidEK)
	}
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, oidSAN.Equal)
	return leaf, nil
}

// maxKnown bounds each half of the memory: about 200 bytes for each entry.
const maxKnown = 4096

// memory holds devices and keys that were checked, by the digests of the bytes
// they were checked from. Evidence is never part of it.
type memory struct {
	devices pki.Cache[[2]attest.Digest, *device]
	keys    pki.Cache[attest.Digest, crypto.PublicKey]
}

// device checks certificates, or remembers that it did; time and roots are
// checked each time.
func (m *memory) device(der, bundle []byte, roots []attest.Digest, at time.Time) (*device, error) {
	id := [2]attest.Digest{wire.Sum(der), wire.SumPEM(bundle)}
	if d, known := m.devices.Load(id); known && slices.Contains(roots, d.root) && !at.Before(d.from) && !at.After(d.until) {
		return d, nil
	}
	d, err := checkDevice(der, bundle, roots, at)
	if err != nil {
		return nil, err
	}
	m.devices.Store(id, d, maxKnown)
	return d, nil
}

// attestationKey reads an attestation key, or takes it from the cache.
func (m *memory) attestationKey(public []byte) (crypto.PublicKey, error) {
	name := nameOf(public)
	if key, known := m.keys.Load(name); known {
		return key, nil
	}
	key, err := parseKey(public)
	if err != nil {
		return nil, err
	}
	m.keys.Store(name, key, maxKnown)
	return key, nil
}
