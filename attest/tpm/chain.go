package tpm

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
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
	options := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	}
	above, err := parseBundle(bundle)
	if err != nil {
		return nil, err
	}
	named := false
	for _, c := range above {
		if slices.Contains(roots, wire.Sum(c.RawSubjectPublicKeyInfo)) {
			named = true
			options.Roots.AddCert(c)
			continue
		}
		options.Intermediates.AddCert(c)
	}
	if !named {
		return nil, wire.Refuse(wire.UnknownRoot, "tpm: authority of the endorsement key", leaf.Issuer, "one that policy names, among "+RoleCA)
	}
	chains, err := leaf.Verify(options)
	if err != nil {
		return nil, refuseChain(err)
	}
	return deviceOf(chains[0]), nil
}

// refuseChain tells what is out of its time from what does not hold.
func refuseChain(err error) error {
	if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		return wire.Refuse(wire.Expired, "tpm: time of the endorsement key's certificates", err, "a time that all are valid at")
	}
	return wire.Refuse(wire.BadChain, "tpm: certificate of the endorsement key", err, "one under an authority that policy names")
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
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, wire.Refuse(wire.Malformed, "tpm: certificate of the endorsement key", err, "DER")
	}
	if leaf.IsCA || !slices.ContainsFunc(leaf.UnknownExtKeyUsage, oidEK.Equal) {
		return nil, wire.Refuse(wire.BadChain, "tpm: use of the endorsement key's certificate", leaf.UnknownExtKeyUsage, oidEK)
	}
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, oidSAN.Equal)
	return leaf, nil
}

func parseBundle(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for len(bytes.TrimSpace(text)) > 0 {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "CERTIFICATE" || len(all) == maxCA {
			return nil, wire.Refuse(wire.Malformed, "tpm: "+RoleCA, "other text", "at most 8 certificates in PEM")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, wire.Refuse(wire.Malformed, "tpm: "+RoleCA, err, "certificates in PEM")
		}
		all, text = append(all, c), rest
	}
	return all, nil
}

// maxKnown bounds each half of the memory: about 200 bytes for each entry.
const maxKnown = 4096

// memory holds devices and keys that were checked, by the digests of the bytes
// they were checked from. Evidence is never part of it.
type memory struct {
	mu      sync.Mutex // guards both
	devices map[[2]attest.Digest]*device
	keys    map[attest.Digest]crypto.PublicKey
}

// device checks certificates, or remembers that it did; time and roots are
// judged each time.
func (m *memory) device(der, bundle []byte, roots []attest.Digest, at time.Time) (*device, error) {
	id := [2]attest.Digest{wire.Sum(der), wire.Sum(bundle)}
	m.mu.Lock()
	d := m.devices[id]
	m.mu.Unlock()
	if d != nil && slices.Contains(roots, d.root) && !at.Before(d.from) && !at.After(d.until) {
		return d, nil
	}
	d, err := checkDevice(der, bundle, roots, at)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	keep(&m.devices, id, d)
	return d, nil
}

// key reads an attestation key, or remembers it.
func (m *memory) key(public []byte) (crypto.PublicKey, error) {
	name := nameOf(public)
	m.mu.Lock()
	key := m.keys[name]
	m.mu.Unlock()
	if key != nil {
		return key, nil
	}
	key, err := ParseKey(public)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	keep(&m.keys, name, key)
	return key, nil
}

// keep adds to a map; when full it forgets any one.
func keep[K comparable, V any](in *map[K]V, id K, v V) {
	if *in == nil {
		*in = make(map[K]V)
	}
	for other := range *in {
		if len(*in) < maxKnown {
			break
		}
		delete(*in, other)
	}
	(*in)[id] = v
}
