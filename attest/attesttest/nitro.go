package attesttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"math/big"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// NitroVendor plays AWS: a root, and under it an instance with its enclaves.
type NitroVendor struct {
	// Edit changes a certificate before it is signed; it selects certificates by common
	// name: "instance" or "enclave", and with Regions also "region" and "zone".
	Edit func(c *x509.Certificate)
	// Regions puts a CA of a region and a CA of its zone between root and instance. Their
	// certificates name the revocation lists of their issuers, as AWS's do.
	Regions bool
	// ListEdit changes a revocation list before it is signed; issuer is the common name of
	// its issuer.
	ListEdit func(l *x509.RevocationList, issuer string)

	at     time.Time
	key    *ecdsa.PrivateKey
	root   *x509.Certificate
	region *x509.Certificate // set with its key once an enclave has started there
	signer *ecdsa.PrivateKey
}

// NewNitroVendor returns a vendor whose certificates are valid around a time; an enclave's
// certificate is valid for three hours from then.
func NewNitroVendor(at time.Time) *NitroVendor {
	v := &NitroVendor{at: at, key: newP384()}
	template := v.template("aws.nitro-enclaves", 10*365*24*time.Hour)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	v.root = sign(template, template, &v.key.PublicKey, v.key)
	return v
}

func newP384() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		panic(err) // the system's random source does not fail
	}
	return key
}

func (v *NitroVendor) template(name string, life time.Duration) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber:       NitroSerial(name),
		Subject:            pkix.Name{Organization: []string{"Amazon"}, CommonName: name},
		NotBefore:          v.at,
		NotAfter:           v.at.Add(life),
		SignatureAlgorithm: x509.ECDSAWithSHA384,
	}
}

// NitroSerial returns the serial number of the certificate with a common name.
func NitroSerial(name string) *big.Int { return new(big.Int).SetBytes([]byte(name)) }

// Endorsements returns the revocation lists of the root and of the region.
func (v *NitroVendor) Endorsements() attest.Endorsements {
	lists := attest.Endorsements{"root_crl": v.list(v.root, v.key)}
	if v.region != nil {
		lists["region_crl"] = v.list(v.region, v.signer)
	}
	return lists
}

func (v *NitroVendor) list(issuer *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: v.at, NextUpdate: v.at.Add(24 * time.Hour), SignatureAlgorithm: x509.ECDSAWithSHA384}
	if v.ListEdit != nil {
		v.ListEdit(list, issuer.Subject.CommonName)
	}
	return signList(list, issuer, key)
}

// below issues a CA certificate under an issuer.
func (v *NitroVendor) below(name string, life time.Duration, issuer *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	key := newP384()
	template := v.template(name, life)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	template.SubjectKeyId = []byte(name)
	if name != "instance" {
		template.CRLDistributionPoints = []string{NitroList(name)}
	}
	return sign(v.edit(template), issuer, &key.PublicKey, signer), key
}

// NitroList returns the URL of the issuer's revocation list that the certificate of a
// region or zone contains.
func NitroList(name string) string {
	if name == "region" {
		return "http://aws-nitro-enclaves-crl.s3.amazonaws.com/crl/ab4960cc-7d63-42bd-9e9f-59338cb67f84.crl"
	}
	return "http://crl-ap-south-1-aws-nitro-enclaves.s3.ap-south-1.amazonaws.com/crl/1b155830-8279-4d8b-a529-98dc11ced7c2.crl"
}

// Root returns the digest that names the vendor in policy.
func (v *NitroVendor) Root() attest.Digest { return wire.Sum(v.root.RawSubjectPublicKeyInfo) }

// Rules returns rules that accept this vendor's documents for five minutes, and no debug.
func (v *NitroVendor) Rules() attest.Rules {
	return attest.Rules{Roots: []attest.Digest{v.Root()}, Nitro: attest.NitroRules{MaxAge: 5 * time.Minute}}
}

// MeasureNitro returns the measurement of an unsigned enclave image that exists only as a
// name.
func MeasureNitro(name string) attest.Measurement {
	m := attest.Measurement{Platform: attest.Nitro}
	for _, pcr := range []string{"pcr0", "pcr1", "pcr2"} {
		value := sha512.Sum384([]byte(pcr + name))
		m.Registers = append(m.Registers, attest.Register{Name: pcr, Value: value[:]})
	}
	m.Registers = append(m.Registers, attest.Register{Name: "pcr8", Value: make([]byte, 48)})
	return m
}

// NitroDocument is the content that an enclave's security module signs, in order. An empty
// field is null.
type NitroDocument struct {
	ModuleID    string
	Digest      string
	Made        time.Time
	PCRs        map[uint64][]byte
	Certificate []byte
	Bundle      [][]byte
	PublicKey   []byte
	UserData    []byte
	Nonce       []byte
}

// NitroDevice is the security module of one enclave. It implements
// [attest.Attester].
type NitroDevice struct {
	// Edit changes a document before it is signed.
	Edit func(d *NitroDocument)
	// Now is the module's clock.
	Now func() time.Time

	key         *ecdsa.PrivateKey
	leaf        []byte
	bundle      [][]byte
	measurement attest.Measurement
}

var _ attest.Attester = (*NitroDevice)(nil)

// Attester starts an enclave on a new instance. The measurement comes from [MeasureNitro].
func (v *NitroVendor) Attester(m attest.Measurement) *NitroDevice {
	d := &NitroDevice{key: newP384(), measurement: m, Now: func() time.Time { return v.at }}
	issuer, signer := v.root, v.key
	d.bundle = [][]byte{v.root.Raw}
	if v.Regions {
		issuer, signer = v.below("region", 20*24*time.Hour, issuer, signer)
		v.region, v.signer = issuer, signer
		zone, key := v.below("zone", 6*24*time.Hour, issuer, signer)
		d.bundle = append(d.bundle, issuer.Raw, zone.Raw)
		issuer, signer = zone, key
	}
	instance, key := v.below("instance", 24*time.Hour, issuer, signer)
	d.leaf = sign(v.edit(v.template("enclave", 3*time.Hour)), instance, &d.key.PublicKey, key).Raw
	d.bundle = append(d.bundle, instance.Raw)
	return d
}

func (v *NitroVendor) edit(c *x509.Certificate) *x509.Certificate {
	if v.Edit != nil {
		v.Edit(c)
	}
	return c
}

// Attest returns a document with the report data as its user data.
func (d *NitroDevice) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	doc := &NitroDocument{
		ModuleID: "i-test-enc1", Digest: "SHA384", Made: d.Now(), PCRs: make(map[uint64][]byte),
		Certificate: d.leaf, Bundle: d.bundle, UserData: data[:],
	}
	for i := range uint64(16) {
		doc.PCRs[i] = make([]byte, 48)
	}
	for i, pcr := range []uint64{0, 1, 2, 8} {
		doc.PCRs[pcr] = d.measurement.Registers[i].Value
	}
	if d.Edit != nil {
		d.Edit(doc)
	}
	raw, err := d.Sign(doc.encode())
	return attest.Evidence{Platform: attest.Nitro, Raw: raw}, err
}

// Sign returns a payload as an untagged COSE_Sign1 with algorithm ES384.
func (d *NitroDevice) Sign(payload []byte) ([]byte, error) {
	protected := cborBytes([]byte{0xa1, 0x01, 0x38, 0x22})
	signed := slices.Concat(cborHead(4, 4), cborText("Signature1"), protected, cborBytes(nil), cborBytes(payload))
	digest := sha512.Sum384(signed)
	r, s, err := ecdsa.Sign(rand.Reader, d.key, digest[:])
	if err != nil {
		return nil, err
	}
	signature := make([]byte, 96)
	r.FillBytes(signature[:48])
	s.FillBytes(signature[48:])
	return slices.Concat(cborHead(4, 4), protected, cborHead(5, 0), cborBytes(payload), cborBytes(signature)), nil
}

func (d *NitroDocument) encode() []byte {
	b := slices.Concat(cborHead(5, 9),
		cborText("module_id"), cborText(d.ModuleID),
		cborText("digest"), cborText(d.Digest),
		cborText("timestamp"), cborHead(0, uint64(d.Made.UnixMilli())),
		cborText("pcrs"), cborHead(5, uint64(len(d.PCRs))))
	for pcr, value := range d.PCRs {
		b = slices.Concat(b, cborHead(0, pcr), cborBytes(value))
	}
	b = slices.Concat(b, cborText("certificate"), cborBytes(d.Certificate), cborText("cabundle"), cborHead(4, uint64(len(d.Bundle))))
	for _, cert := range d.Bundle {
		b = append(b, cborBytes(cert)...)
	}
	return slices.Concat(b, cborText("public_key"), cborOptional(d.PublicKey),
		cborText("user_data"), cborOptional(d.UserData), cborText("nonce"), cborOptional(d.Nonce))
}

// cborHead returns the shortest head of a CBOR item of a major type (RFC 8949, section 3).
func cborHead(major byte, n uint64) []byte {
	switch {
	case n < 24:
		return []byte{major<<5 | byte(n)}
	case n < 1<<8:
		return []byte{major<<5 | 24, byte(n)}
	case n < 1<<16:
		return binary.BigEndian.AppendUint16([]byte{major<<5 | 25}, uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32([]byte{major<<5 | 26}, uint32(n))
	}
	return binary.BigEndian.AppendUint64([]byte{major<<5 | 27}, n)
}

func cborBytes(b []byte) []byte { return append(cborHead(2, uint64(len(b))), b...) }

func cborText(s string) []byte { return append(cborHead(3, uint64(len(s))), s...) }

func cborOptional(b []byte) []byte {
	if b == nil {
		return []byte{0xf6} // null
	}
	return cborBytes(b)
}
