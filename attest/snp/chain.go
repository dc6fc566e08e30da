package snp

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/pki"
	"github.com/cohort-tee/cohort/internal/wire"
)

// bundle is the endorsements of one report, unchecked.
type bundle struct {
	kind   signer
	leaf   []byte // VCEK or VLEK
	askARK []byte
	crl    []byte // nil when there is none
}

func bundleOf(r report, endorsed attest.Endorsements) bundle {
	b := bundle{kind: r.signer, askARK: endorsed["ask_ark"], crl: endorsed["crl"]}
	b.leaf = endorsed[strings.ToLower(b.kind.String())]
	return b
}

// chain is what a certificate chain vouches for, once it is verified and nothing in
// it is revoked. Its time is not checked yet. It is immutable.
type chain struct {
	kind    signer
	root    attest.Digest // of the ARK's SubjectPublicKeyInfo
	key     *ecdsa.PublicKey
	product string
	chip    []byte // 64 bytes, 8 on Turin; nil under a VLEK, which names none
	csp     string // cloud provider, under a VLEK only
	tcb     attest.SNPTCB
	hasList bool // there was a revocation list
	times   []pki.Validity
}

var amd = pki.Vendor{Name: "snp", Algorithm: x509.SHA384WithRSAPSS, ListAlgorithms: []x509.SignatureAlgorithm{x509.SHA384WithRSAPSS}}

// certificates are ARK, ASK (or ASVK) and VCEK (or VLEK).
type certificates struct{ ark, ask, leaf *x509.Certificate }

// leafFirst are the certificates, leaf first.
func (c certificates) leafFirst() []*x509.Certificate {
	return []*x509.Certificate{c.leaf, c.ask, c.ark}
}

// verify checks everything about a bundle that does not depend on time or rules.
func (b bundle) verify() (*chain, error) {
	certs, err := b.parse()
	if err != nil {
		return nil, err
	}
	if err := amd.VerifyChain(certs.leafFirst()...); err != nil {
		return nil, err
	}
	c := &chain{kind: b.kind, root: wire.Sum(certs.ark.RawSubjectPublicKeyInfo), times: pki.Validities(certs.leafFirst()...)}
	if err := c.subjects(certs); err != nil {
		return nil, err
	}
	if err := c.extensions(certs.leaf); err != nil {
		return nil, err
	}
	if b.crl == nil {
		return c, nil
	}
	return c, c.revocations(b.crl, certs)
}

func (b bundle) parse() (certificates, error) {
	if len(b.leaf) == 0 || len(b.askARK) == 0 {
		got := fmt.Sprintf("%d bytes of ask_ark, %d of %s", len(b.askARK), len(b.leaf), strings.ToLower(b.kind.String()))
		return certificates{}, wire.Refuse(wire.BadChain, "snp: certificates", got, "ask_ark and "+strings.ToLower(b.kind.String()))
	}
	above, err := amd.Certificates("ask_ark", b.askARK, 2)
	if err != nil {
		return certificates{}, err
	}
	if len(above) != 2 {
		return certificates{}, wire.Refuse(wire.Malformed, "snp: certificates in ask_ark", len(above), "ASK and ARK")
	}
	leaf, err := pki.ParseCertificate(b.leaf)
	if err != nil {
		return certificates{}, wire.Refuse(wire.Malformed, "snp: certificate "+b.kind.String(), err, "DER")
	}
	return certificates{ask: above[0], ark: above[1], leaf: leaf}, nil
}

// subjects checks that the three names belong together: AMD has an ARK for each
// generation, below it one ASK for chips and one ASVK for providers.
func (c *chain) subjects(certs certificates) error {
	product, ok := strings.CutPrefix(certs.ark.Subject.CommonName, "ARK-")
	if !ok || product != milan && product != genoa && product != turin {
		return wire.Refuse(wire.BadChain, "snp: name of the root", certs.ark.Subject.CommonName, "ARK-Milan, ARK-Genoa or ARK-Turin")
	}
	c.product = product
	issuer := "SEV-" + product
	if c.kind == signerVLEK {
		issuer = "SEV-VLEK-" + product
	}
	if got := certs.ask.Subject.CommonName; got != issuer {
		return wire.Refuse(wire.BadChain, "snp: name of the intermediate certificate", got, issuer)
	}
	if got, want := certs.leaf.Subject.CommonName, "SEV-"+c.kind.String(); got != want {
		return wire.Refuse(wire.BadChain, "snp: name of the signing certificate", got, want)
	}
	var err error
	c.key, err = amd.PublicKey(certs.leaf, elliptic.P384())
	return err
}

// revocations checks the list by the ARK and looks each certificate up in it.
func (c *chain) revocations(der []byte, certs certificates) error {
	list, err := amd.ParseRevocationList(der, certs.ark, nil)
	if err != nil {
		return err
	}
	c.hasList, c.times = true, append(c.times, list.Validity)
	return list.CheckNotRevoked(certs.leafFirst()...)
}

// vouchesFor reports whether the chain vouches for the chip of a report: the chip id
// is the certificate's, followed by zeros where that is shorter. Under a VLEK
// any chip of the provider may have signed.
func (c *chain) vouchesFor(chipID []byte) bool {
	if c.kind == signerVLEK {
		return true
	}
	padded := make([]byte, chipIDSize)
	copy(padded, c.chip)
	return bytes.Equal(padded, chipID)
}

// deviceName is what represents the device of a report: its chip id, or where the host
// hides that the provider that holds the VLEK.
func (c *chain) deviceName(r report) string {
	switch {
	case c.kind != signerVLEK:
		return hex.EncodeToString(c.chip)
	case r.hidden():
		return "vlek:" + c.csp
	case c.product == turin:
		return hex.EncodeToString(r.ChipID[:8]) // as its VCEK has it; zeros follow
	}
	return hex.EncodeToString(r.ChipID)
}

// Extensions of AMD's certificates of signing keys (AMD 57230, section 3.1).
var (
	oidProductName = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 2}
	oidBootloader  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 3, 1}
	oidTEE         = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 3, 2}
	oidSNP         = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 3, 3}
	oidMicrocode   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 3, 8}
	oidFMC         = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 3, 9} // of Turin's first mutable code
	oidHardwareID  = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 4}
	oidProvider    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 5}
)

// extensions reads what AMD certifies of the signing key: generation, chip or
// provider, and firmware levels.
func (c *chain) extensions(leaf *x509.Certificate) error {
	var product string
	if err := c.extension(leaf, oidProductName, &product); err != nil {
		return err
	}
	if line, _, _ := strings.Cut(product, "-"); line != c.product {
		return wire.Refuse(wire.BadChain, "snp: product of the signing certificate", product, c.product)
	}
	levels := []struct {
		oid asn1.ObjectIdentifier
		to  *uint8
	}{{oidBootloader, &c.tcb.Bootloader}, {oidTEE, &c.tcb.TEE}, {oidSNP, &c.tcb.SNP}, {oidMicrocode, &c.tcb.Microcode}}
	if c.product == turin {
		levels = append(levels, struct {
			oid asn1.ObjectIdentifier
			to  *uint8
		}{oidFMC, &c.tcb.FMC})
	}
	for _, l := range levels {
		var level int
		if err := c.extension(leaf, l.oid, &level); err != nil {
			return err
		}
		if level < 0 || level > 255 {
			return wire.Refuse(wire.BadChain, "snp: extension "+l.oid.String(), level, "0 to 255")
		}
		*l.to = uint8(level)
	}
	return c.holder(leaf)
}

// holder reads which chip, or under a VLEK which provider, holds the key.
func (c *chain) holder(leaf *x509.Certificate) error {
	if c.kind == signerVLEK {
		return c.extension(leaf, oidProvider, &c.csp)
	}
	size := chipIDSize
	if c.product == turin {
		size = 8
	}
	value := findExtension(leaf, oidHardwareID)
	if len(value) != size { // KDS writes the bytes as they are; tolerate the OCTET STRING they should be
		if rest, err := asn1.Unmarshal(value, &c.chip); err != nil || len(rest) > 0 || len(c.chip) != size {
			return wire.Refuse(wire.BadChain, "snp: size of the certificate's chip id", len(value), size)
		}
		return nil
	}
	c.chip = value
	return nil
}

// extension reads one extension of the leaf, strictly.
func (c *chain) extension(leaf *x509.Certificate, oid asn1.ObjectIdentifier, to any) error {
	params := ""
	if _, text := to.(*string); text {
		params = "ia5"
	}
	rest, err := asn1.UnmarshalWithParams(findExtension(leaf, oid), to, params)
	if err != nil || len(rest) > 0 {
		return wire.Refuse(wire.BadChain, "snp: extension "+oid.String()+" of "+leaf.Subject.CommonName, err, "one value")
	}
	return nil
}

// findExtension is the value of an extension, nil when there is none. The parser has
// refused duplicates.
func findExtension(cert *x509.Certificate, oid asn1.ObjectIdentifier) []byte {
	for _, e := range cert.Extensions {
		if e.Id.Equal(oid) {
			return e.Value
		}
	}
	return nil
}
