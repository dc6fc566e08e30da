package nvidia

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Places in a chain. The chip itself signs the leaf, for the firmware that runs; the
// others are NVIDIA's, made when the chip was.
const (
	atLeaf = iota
	atChip
	atProvisioner
	atModel
	atRoot
	certificates
)

// unverifiedChain is a GPU's certificates, leaf first, root last, as they came: so
// many, and nothing more is known.
type unverifiedChain []*x509.Certificate

// chain is a chain that holds. Only unverifiedChain.hold makes one.
type chain struct {
	certs []*x509.Certificate
	model string // such as "GH100", by the certificate of its CA
}

func (c chain) leaf() *x509.Certificate { return c.certs[atLeaf] }

// key is the leaf's, which is of ECDSA.
func (c chain) key() *ecdsa.PublicKey {
	key, _ := c.leaf().PublicKey.(*ecdsa.PublicKey)
	return key
}

// chip names the device: the digest of the key that was born in it.
func (c chain) chip() attest.Digest { return wire.Sum(c.certs[atChip].RawSubjectPublicKeyInfo) }

// parseChain reads certificates in PEM, in one encoding but for the last line end,
// which NVIDIA's tools leave out.
func parseChain(text []byte) (unverifiedChain, error) {
	var certs unverifiedChain
	var again []byte
	for rest := text; len(certs) <= certificates; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, wire.Refuse(wire.Malformed, "nvidia: certificate in the chain", err, "DER")
		}
		certs = append(certs, cert)
		again = append(again, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})...)
	}
	if !bytes.Equal(bytes.TrimSuffix(again, []byte("\n")), bytes.TrimSuffix(text, []byte("\n"))) {
		return nil, wire.Refuse(wire.Malformed, "nvidia: chain", "another encoding", "certificates in PEM and nothing else")
	}
	if len(certs) != certificates {
		return nil, wire.Refuse(wire.BadChain, "nvidia: certificates in the chain", len(certs), certificates)
	}
	return certs, nil
}

// hold checks the certificates against the accepted roots, at a time.
func (u unverifiedChain) hold(roots []attest.Digest, at time.Time) (chain, error) {
	if got := wire.Sum(u[atRoot].RawSubjectPublicKeyInfo); !slices.Contains(roots, got) {
		return chain{}, wire.Refuse(wire.UnknownRoot, "nvidia: root of the chain", got, "a root that policy names")
	}
	for i, cert := range u {
		if err := link(cert, u[min(i+1, atRoot)]); err != nil {
			return chain{}, err
		}
	}
	if u[atLeaf].IsCA {
		return chain{}, wire.Refuse(wire.BadChain, "nvidia: leaf", "a CA", "none")
	}
	model, err := u.model()
	if err != nil {
		return chain{}, err
	}
	for _, cert := range u {
		if at.Before(cert.NotBefore) || at.After(cert.NotAfter) {
			return chain{}, wire.Refuse(wire.Expired, "nvidia: time of "+cert.Subject.CommonName, at.UTC().Format(time.RFC3339),
				fmt.Sprintf("%s to %s", cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339)))
		}
	}
	return chain{u, model}, nil
}

// link checks one signature and what makes it count.
func link(child, parent *x509.Certificate) error {
	name := child.Subject.CommonName
	if child.SignatureAlgorithm != x509.ECDSAWithSHA384 {
		return wire.Refuse(wire.BadChain, "nvidia: signature algorithm of "+name, child.SignatureAlgorithm, x509.ECDSAWithSHA384)
	}
	if !bytes.Equal(child.RawIssuer, parent.RawSubject) {
		return wire.Refuse(wire.BadChain, "nvidia: issuer of "+name, child.Issuer, parent.Subject)
	}
	if len(child.UnhandledCriticalExtensions) > 0 {
		return wire.Refuse(wire.BadChain, "nvidia: critical extension of "+name, child.UnhandledCriticalExtensions[0], "none that is unknown")
	}
	if key, ok := child.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P384() {
		return wire.Refuse(wire.BadChain, "nvidia: key of "+name, child.PublicKeyAlgorithm, "ECDSA P-384")
	}
	if err := child.CheckSignatureFrom(parent); err != nil {
		return wire.Refuse(wire.BadChain, "nvidia: signature of "+name, err, "one by "+parent.Subject.CommonName)
	}
	return nil
}

var modelCA = regexp.MustCompile(`^NVIDIA (G[A-Z][0-9]{3}) Identity$`)

// model tells the model by its CA, which NVIDIA named, and checks that the others are
// of the same. The root vouches for switches and network cards too, whose
// certificates have other names.
func (u unverifiedChain) model() (string, error) {
	name := func(at int) string { return u[at].Subject.CommonName }
	found := modelCA.FindStringSubmatch(name(atModel))
	if found == nil {
		return "", wire.Refuse(wire.BadChain, "nvidia: CA of the model", name(atModel), "NVIDIA MODEL Identity")
	}
	model := found[1]
	for _, want := range []struct {
		at            int
		before, after string
	}{
		{atProvisioner, "NVIDIA " + model + " Provisioner ICA ", ""}, {atChip, model + " ", " GSP BROM"}, {atLeaf, model + " ", " GSP FMC LF"},
	} {
		if got := name(want.at); !strings.HasPrefix(got, want.before) || !strings.HasSuffix(got, want.after) {
			return "", wire.Refuse(wire.BadChain, "nvidia: name of a certificate", got, want.before+"…"+want.after)
		}
	}
	return model, nil
}

// notRevoked looks the two certificates whose issuers publish lists up in them. The
// chip's and the leaf's have none.
func (c chain) notRevoked(endorsed attest.Endorsements, rule attest.CRLRule, at time.Time) error {
	for _, by := range []struct {
		role   string
		issuer int
	}{{roleRootCRL, atRoot}, {roleModelCRL, atModel}} {
		der := endorsed[by.role]
		if der == nil && rule == attest.CRLIfPresent {
			continue
		}
		if der == nil {
			return wire.Refuse(wire.CRLMissing, "nvidia: "+by.role, "none", "the list by "+c.certs[by.issuer].Subject.CommonName)
		}
		if err := listed(der, c.certs[by.issuer], c.certs[by.issuer-1], at); err != nil {
			return err
		}
	}
	return nil
}

// listed checks a list by its issuer, at a time, and refuses a certificate that
// stands in it.
func listed(der []byte, issuer, cert *x509.Certificate, at time.Time) error {
	of := "nvidia: revocation list of " + issuer.Subject.CommonName
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return wire.Refuse(wire.Malformed, of, err, "DER")
	}
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) || list.SignatureAlgorithm != x509.ECDSAWithSHA384 {
		return wire.Refuse(wire.BadSignature, of, list.Issuer, issuer.Subject)
	}
	if err := list.CheckSignatureFrom(issuer); err != nil {
		return wire.Refuse(wire.BadSignature, of, err, "one by its issuer")
	}
	for _, e := range list.Extensions {
		if e.Critical {
			return wire.Refuse(wire.Malformed, of, e.Id, "no critical extension")
		}
	}
	for _, entry := range list.RevokedCertificateEntries {
		if entry.SerialNumber.Cmp(cert.SerialNumber) == 0 {
			return wire.Refuse(wire.Revoked, "nvidia: serial of "+cert.Subject.CommonName, "revoked "+entry.RevocationTime.Format(time.RFC3339), "not revoked")
		}
	}
	if at.Before(list.ThisUpdate) || at.After(list.NextUpdate) {
		return wire.Refuse(wire.Expired, of, at.UTC().Format(time.RFC3339), fmt.Sprintf("%s to %s", list.ThisUpdate.Format(time.RFC3339), list.NextUpdate.Format(time.RFC3339)))
	}
	return nil
}
