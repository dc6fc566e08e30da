package attesttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// SNPVendor plays AMD for one CPU generation: an ARK, an ASK, an ASVK, and a revocation
// list. Certificates are valid around its time.
type SNPVendor struct {
	// Edit changes a certificate before it is signed; it selects certificates by common
	// name. Set it before making what it should change: Chip and CloudChip issue the leaf,
	// Endorsements the ASK or ASVK.
	Edit func(c *x509.Certificate)
	// ListFrom and ListUntil are the validity of the revocation list.
	ListFrom, ListUntil time.Time
	// ListEdit changes the revocation list before it is signed.
	ListEdit func(l *x509.RevocationList)

	product string
	at      time.Time
	ark     snpIssuer
	ask     *rsa.PrivateKey // of both ASK and ASVK
	revoked []x509.RevocationListEntry
}

type snpIssuer struct {
	key  *rsa.PrivateKey
	cert *x509.Certificate
}

// Validity of AMD's certificates in years; the revocation list is valid for a month here.
const (
	snpLeafLife = 7
	snpListLife = 30 * 24 * time.Hour
)

// NewSNPVendor returns the vendor of "Milan", "Genoa" or "Turin". Its keys are shorter than
// AMD's, which take seconds to generate.
func NewSNPVendor(product string, at time.Time) *SNPVendor {
	v := &SNPVendor{product: product, at: at, ask: newRSA(), ListFrom: at.Add(-time.Hour), ListUntil: at.Add(snpListLife)}
	key := newRSA()
	root := v.template("ARK-"+product, 1)
	root.IsCA, root.BasicConstraintsValid = true, true
	root.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	v.ark = snpIssuer{key, sign(root, root, &key.PublicKey, key)}
	return v
}

// rsaKeys are the keys of all vendors of a process: one of 2,048 bits, the fewest that appraisers
// accept, takes 60 ms to make. A vendor has two, so only every eighth vendor has those of another.
var rsaKeys struct {
	mu   sync.Mutex // guards the rest
	next int
	all  [16]*rsa.PrivateKey
}

func newRSA() *rsa.PrivateKey {
	rsaKeys.mu.Lock()
	defer rsaKeys.mu.Unlock()
	key := &rsaKeys.all[rsaKeys.next%len(rsaKeys.all)]
	rsaKeys.next++
	if *key == nil {
		fresh, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err) // the system's random source does not fail
		}
		*key = fresh
	}
	return *key
}

func (v *SNPVendor) template(name string, serial int64) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:       big.NewInt(serial),
		Subject:            pkix.Name{Organization: []string{"Advanced Micro Devices"}, CommonName: name},
		NotBefore:          v.at.AddDate(-1, 0, 0),
		NotAfter:           v.at.AddDate(snpLeafLife, 0, 0),
		SignatureAlgorithm: x509.SHA384WithRSAPSS,
	}
}

// sign issues a certificate. It panics on an error, since templates of this package are
// valid.
func sign(template, parent *x509.Certificate, key, signer any) *x509.Certificate {
	random := rand.Reader
	if _, curve := signer.(*ecdsa.PrivateKey); curve {
		random = nil // deterministic (RFC 6979): a chip's chain is the same bytes each time
	}
	der, err := x509.CreateCertificate(random, template, parent, key, signer)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert
}

func (v *SNPVendor) edit(c *x509.Certificate) *x509.Certificate {
	if v.Edit != nil {
		v.Edit(c)
	}
	return c
}

// Root returns the digest that names the vendor in policy.
func (v *SNPVendor) Root() attest.Digest { return wire.Sum(v.ark.cert.RawSubjectPublicKeyInfo) }

// Rules returns rules that accept this vendor's chips with any firmware, but no debug and
// no hidden chip id.
func (v *SNPVendor) Rules() attest.Rules {
	return attest.Rules{Roots: []attest.Digest{v.Root()}, SNP: attest.SNPRules{
		Generations: map[string]attest.SNPFloor{v.product: {}},
		Chips:       attest.List{Any: true},
		IDKeys:      attest.List{Values: [][]byte{make([]byte, 48)}},
	}}
}

// intermediate issues the ASK, or the ASVK for the keys of cloud providers.
func (v *SNPVendor) intermediate(cloud string) *x509.Certificate {
	name := "SEV-" + v.product
	if cloud != "" {
		name = "SEV-VLEK-" + v.product
	}
	template := v.template(name, 2)
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign
	return sign(v.edit(template), v.ark.cert, &v.ask.PublicKey, v.ark.key)
}

// Revoke adds a certificate's serial number to the revocation list: 1 is the ARK's, 2 the
// ASK's, others are those of chips ([SNPChip.Serial]).
func (v *SNPVendor) Revoke(serial *big.Int) {
	v.revoked = append(v.revoked, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: v.at.Add(-time.Minute)})
}

func (v *SNPVendor) list() []byte {
	list := &x509.RevocationList{
		SignatureAlgorithm:        x509.SHA384WithRSAPSS,
		Number:                    big.NewInt(1),
		ThisUpdate:                v.ListFrom,
		NextUpdate:                v.ListUntil,
		RevokedCertificateEntries: v.revoked,
	}
	if v.ListEdit != nil {
		v.ListEdit(list)
	}
	return signList(list, v.ark.cert, v.ark.key)
}

// SNPChip is one CPU, with the certificate of its signing key.
type SNPChip struct {
	vendor *SNPVendor
	id     [64]byte
	tcb    attest.SNPTCB
	cloud  string
	key    *ecdsa.PrivateKey
	cert   *x509.Certificate
}

// Chip returns a chip whose VCEK is for the given firmware.
func (v *SNPVendor) Chip(tcb attest.SNPTCB) *SNPChip {
	c := &SNPChip{vendor: v, tcb: tcb}
	rand.Read(c.id[:v.idSize()])
	c.certify("SEV-VCEK", pkix.Extension{Id: amd(4), Value: c.id[:v.idSize()]})
	return c
}

// CloudChip returns a chip that signs with the VLEK of a cloud provider and hides its chip
// id.
func (v *SNPVendor) CloudChip(tcb attest.SNPTCB, provider string) *SNPChip {
	c := &SNPChip{vendor: v, tcb: tcb, cloud: provider}
	c.certify("SEV-VLEK", pkix.Extension{Id: amd(5), Value: ia5(provider)})
	return c
}

// idSize returns the number of bytes of a chip id that are not zero.
func (v *SNPVendor) idSize() int {
	if v.product == "Turin" {
		return 8
	}
	return 64
}

func (c *SNPChip) certify(name string, holder pkix.Extension) {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		panic(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		panic(err)
	}
	template := c.vendor.template(name, 0)
	template.SerialNumber = serial.Add(serial, big.NewInt(1<<32))
	template.ExtraExtensions = append(c.vendor.levels(c.tcb), holder)
	c.key = key
	c.cert = sign(c.vendor.edit(template), c.vendor.intermediate(c.cloud), &key.PublicKey, c.vendor.ask)
}

// levels returns the certificate extensions for generation and firmware.
func (v *SNPVendor) levels(tcb attest.SNPTCB) []pkix.Extension {
	extensions := []pkix.Extension{{Id: amd(2), Value: ia5(v.product + "-B0")}}
	levels := map[int]uint8{1: tcb.Bootloader, 2: tcb.TEE, 3: tcb.SNP, 8: tcb.Microcode}
	if v.product == "Turin" {
		levels[9] = tcb.FMC
	}
	for which, level := range levels {
		value, err := asn1.Marshal(int(level))
		if err != nil {
			panic(err)
		}
		extensions = append(extensions, pkix.Extension{Id: amd(3, which), Value: value})
	}
	return extensions
}

// amd returns an object identifier of AMD's key distribution service.
func amd(rest ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1}, rest...)
}

func ia5(s string) []byte {
	return append([]byte{asn1.TagIA5String, byte(len(s))}, s...)
}

// Serial returns the serial number of the chip's certificate.
func (c *SNPChip) Serial() *big.Int { return c.cert.SerialNumber }

// ID returns the chip id in the form of reports.
func (c *SNPChip) ID() []byte { return slices.Clone(c.id[:]) }

// Endorsements returns everything that appraisal needs beside the chip's reports, including
// the vendor's current revocation list.
func (c *SNPChip) Endorsements() attest.Endorsements {
	role := "vcek"
	if c.cloud != "" {
		role = "vlek"
	}
	var chain []byte
	for _, cert := range []*x509.Certificate{c.vendor.intermediate(c.cloud), c.vendor.ark.cert} {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return attest.Endorsements{role: c.cert.Raw, "ask_ark": chain, "crl": c.vendor.list()}
}
