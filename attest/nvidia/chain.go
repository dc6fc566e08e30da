package nvidia

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/pki"
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

// chain is a verified chain. Only unverifiedChain.verify makes one.
type chain struct {
	certs []*x509.Certificate
	key   *ecdsa.PublicKey // the leaf's
	model string           // such as "GH100", by the certificate of its CA
}

func (c chain) leafCertificate() *x509.Certificate { return c.certs[atLeaf] }

// chipDigest names the device: the digest of the key that was born in it.
func (c chain) chipDigest() attest.Digest { return wire.Sum(c.certs[atChip].RawSubjectPublicKeyInfo) }

var vendor = pki.Vendor{Name: "nvidia", Algorithm: x509.ECDSAWithSHA384, ListAlgorithms: []x509.SignatureAlgorithm{x509.ECDSAWithSHA384}}

// parseChain reads certificates in PEM.
func parseChain(text []byte) (unverifiedChain, error) {
	certs, err := vendor.Certificates("the chain", text, certificates+1)
	if err != nil {
		return nil, err
	}
	if len(certs) != certificates {
		return nil, wire.Refuse(wire.BadChain, "nvidia: certificates in the chain", len(certs), certificates)
	}
	return certs, nil
}

// verify checks the certificates against the accepted roots, at a time.
func (u unverifiedChain) verify(roots []attest.Digest, at time.Time) (chain, error) {
	if got := wire.Sum(u[atRoot].RawSubjectPublicKeyInfo); !slices.Contains(roots, got) {
		return chain{}, wire.Refuse(wire.UnknownRoot, "nvidia: root of the chain", got, "a root that policy names")
	}
	key, err := vendor.VerifyChainOn(elliptic.P384(), u...)
	if err != nil {
		return chain{}, err
	}
	if u[atLeaf].IsCA {
		return chain{}, wire.Refuse(wire.BadChain, "nvidia: leaf", "a CA", "a certificate that is no CA")
	}
	model, err := u.model()
	if err != nil {
		return chain{}, err
	}
	return chain{u, key, model}, vendor.CheckValidity(at, pki.Validities(u...)...)
}

// modelCA has room for models whose last digit is not stated, such as GB20X.
var modelCA = regexp.MustCompile(`^NVIDIA (G[A-Z][0-9]{2}[0-9X]) Identity$`)

// model returns the model by its CA, which NVIDIA named, and checks that the others are
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

// checkRevocation looks the two certificates whose issuers publish lists up in them. The
// chip's and the leaf's have none. It returns when the newest of the lists was issued,
// zero without any.
func (c chain) checkRevocation(endorsed attest.Endorsements, rule attest.CRLRule, at time.Time) (issued time.Time, err error) {
	var times []pki.Validity
	for _, by := range []struct {
		role   string
		issuer int
	}{{roleRootCRL, atRoot}, {roleModelCRL, atModel}} {
		der := endorsed[by.role]
		if der == nil && rule == attest.CRLIfPresent {
			continue
		}
		if der == nil {
			return time.Time{}, wire.Refuse(wire.CRLMissing, "nvidia: "+by.role, "evidence without this list", "the list by "+c.certs[by.issuer].Subject.CommonName)
		}
		list, err := vendor.ParseRevocationList(der, c.certs[by.issuer], nil)
		if err != nil {
			return time.Time{}, err
		}
		if err := list.CheckNotRevoked(c.certs[by.issuer-1]); err != nil {
			return time.Time{}, err
		}
		if err := vendor.CheckValidity(at, list.Validity); err != nil {
			return time.Time{}, err
		}
		times = append(times, list.Validity)
	}
	return pki.NewestIssue(times...), nil
}
