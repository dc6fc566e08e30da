package attesttest

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"math/big"
	"slices"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/dcap/dcaprules"
)

// Values common to all platforms and quoting enclaves of a synthetic vendor.
var (
	dcapFMSPC    = [6]byte{0x90, 0xc0, 0x6f}
	dcapQESigner = sha256.Sum256([]byte("the signer of quoting enclaves"))
	dcapQEVendor = [16]byte{0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07}
)

// DCAPChip is one platform, with the PCK that Intel certifies for its TCB.
type DCAPChip struct {
	vendor *DCAPVendor
	key    *ecdsa.PrivateKey
	serial *big.Int
	ppid   [16]byte
	tcb    DCAPTCB
}

// Chip returns a platform with the given versions.
func (v *DCAPVendor) Chip(tcb DCAPTCB) *DCAPChip {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		panic(err) // the system's random source does not fail
	}
	c := &DCAPChip{vendor: v, key: newP256(), tcb: tcb, serial: serial.Add(serial, big.NewInt(1<<32))}
	rand.Read(c.ppid[:])
	return c
}

// Serial returns the serial number of the chip's certificate.
func (c *DCAPChip) Serial() *big.Int { return c.serial }

// ID returns the chip's PPID, in the form that rules use.
func (c *DCAPChip) ID() []byte { return slices.Clone(c.ppid[:]) }

// Model returns the chip's FMSPC, in the form that rules use; it is the same for all chips.
func (c *DCAPChip) Model() []byte { return slices.Clone(dcapFMSPC[:]) }

// pckChain returns the chip's certificate and the CA certificates above it.
func (c *DCAPChip) pckChain() []byte {
	template := named(dcapPCK, 0, x509.KeyUsageDigitalSignature)
	template.SerialNumber, template.CRLDistributionPoints = c.serial, []string{"https://intel.example/pckcrl"}
	template.ExtraExtensions = []pkix.Extension{{Id: intel(), Value: c.extension()}}
	root := c.vendor.rootCert()
	authority := c.vendor.authorityCert(root)
	return append(c.vendor.chain(c.vendor.issue(template, authority, c.key, c.vendor.authority), authority, root), 0)
}

// intel returns an object identifier of Intel's SGX extension.
func intel(rest ...int) asn1.ObjectIdentifier {
	return append(asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}, rest...)
}

// pair is one field of the extension.
type pair struct {
	ID    asn1.ObjectIdentifier
	Value any
}

// extension returns the certificate extension in which Intel certifies the platform.
func (c *DCAPChip) extension() []byte {
	var tcb []pair
	for i, svn := range c.tcb.SGX {
		tcb = append(tcb, pair{intel(2, i+1), int(svn)})
	}
	tcb = append(tcb, pair{intel(2, 17), int(c.tcb.PCE)}, pair{intel(2, 18), c.tcb.SGX[:]})
	der, err := asn1.Marshal([]pair{
		{intel(1), c.ppid[:]}, {intel(2), tcb}, {intel(3), make([]byte, 2)}, {intel(4), dcapFMSPC[:]}, {intel(5), asn1.Enumerated(1)},
		{intel(6), c.ppid[:]}, {intel(7), []pair{{intel(7, 1), true}, {intel(7, 2), true}, {intel(7, 3), true}}},
	})
	if err != nil {
		panic(err) // these values always encode as ASN.1
	}
	return der
}

// DCAPDevice is a platform seen from inside one trust domain or enclave. It
// implements [attest.Attester].
type DCAPDevice struct {
	// Version is the version of the quotes; its default is 4 for TDX and 3 for SGX.
	Version uint16
	// Type is the body type of version 5: 1 for SGX, 2 for TDX 1.0 and 3 for TDX 1.5.
	Type uint16
	// Edit changes header and body, concatenated in this order, before the attestation key
	// signs them.
	Edit func(signed []byte)
	// EditQE changes the quoting enclave's report before the PCK signs it.
	EditQE func(report []byte)

	chip        *DCAPChip
	measurement attest.Measurement
}

var _ attest.Attester = (*DCAPDevice)(nil)

// Attester returns the chip as a trust domain or enclave sees it. The measurement comes
// from [MeasureTDX] or [MeasureSGX].
func (c *DCAPChip) Attester(m attest.Measurement) *DCAPDevice {
	d := &DCAPDevice{Version: 4, Type: 2, chip: c, measurement: m}
	if m.Platform == attest.SGX {
		d.Version, d.Type = 3, 1
	}
	return d
}

// Measurement returns the measurement of the trust domain or enclave.
func (d *DCAPDevice) Measurement() attest.Measurement { return d.measurement }

// MeasureTDX returns the measurement of a trust domain that exists only as a name.
func MeasureTDX(name string) attest.Measurement {
	m := attest.Measurement{Platform: attest.TDX}
	for _, register := range dcaprules.TDX.RegisterNames() {
		value := sha512.Sum384([]byte(register + name))
		m.Registers = append(m.Registers, attest.Register{Name: register, Value: value[:]})
	}
	return m
}

// MeasureSGX returns the measurement of an enclave that exists only as a name.
func MeasureSGX(name string) attest.Measurement {
	code, signer, config := sha256.Sum256([]byte(name)), sha256.Sum256([]byte("signer of "+name)), sha512.Sum512([]byte(name))
	return attest.Measurement{Platform: attest.SGX, Registers: []attest.Register{
		{Name: "mrenclave", Value: code[:]}, {Name: "mrsigner", Value: signer[:]},
		{Name: "isvprodid", Value: []byte{1, 2}}, {Name: "configid", Value: config[:]},
	}}
}

// Attest returns a quote without debug.
func (d *DCAPDevice) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	if err := ctx.Err(); err != nil {
		return attest.Evidence{}, err
	}
	signed := slices.Concat(d.header(), d.body(data))
	if d.Edit != nil {
		d.Edit(signed)
	}
	key := newP256()
	public, err := key.PublicKey.Bytes()
	if err != nil {
		return attest.Evidence{}, err
	}
	auth := []byte("authentication data")
	report := qeReport(public[1:], auth)
	if d.EditQE != nil {
		d.EditQE(report)
	}
	pck := d.chip.pckChain()
	tail := slices.Concat(report, signP256(d.chip.key, report), le16(len(auth)), auth, le16(5), le32(len(pck)), pck)
	if d.Version > 3 {
		tail = slices.Concat(le16(6), le32(len(tail)), tail)
	}
	tail = slices.Concat(signP256(key, signed), public[1:], tail)
	return attest.Evidence{Platform: d.measurement.Platform, Raw: slices.Concat(signed, le32(len(tail)), tail)}, nil
}

func le16(n int) []byte { return binary.LittleEndian.AppendUint16(nil, uint16(n)) }

func le32(n int) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(n)) }

// header returns the quote header, with the body descriptor in version 5.
func (d *DCAPDevice) header() []byte {
	tee, sizes := 0x81, map[uint16]int{1: 384, 2: 584, 3: 648}
	if d.measurement.Platform == attest.SGX {
		tee = 0
	}
	h := slices.Concat(le16(int(d.Version)), le16(2), le32(tee), make([]byte, 4), dcapQEVendor[:], make([]byte, 20))
	if d.Version == 5 {
		h = slices.Concat(h, le16(int(d.Type)), le32(sizes[d.Type]))
	}
	return h
}

func (d *DCAPDevice) body(data attest.ReportData) []byte {
	m := d.measurement
	if m.Platform == attest.SGX {
		b := enclaveReport(0x05, 3) // initialised, 64 bits
		copy(b[64:], m.Registers[0].Value)
		copy(b[128:], m.Registers[1].Value)
		copy(b[192:], m.Registers[3].Value)
		b[256], b[257] = m.Registers[2].Value[1], m.Registers[2].Value[0]
		copy(b[320:], data[:])
		return b
	}
	b := make([]byte, 584, 648)
	copy(b, d.chip.tcb.TDX[:])
	b[123] = 0x10 // TD attributes: SEPT_VE disabled
	b[128] = 0xe7 // XFAM
	for i, at := range []int{136, 184, 328, 376, 424, 472} {
		copy(b[at:], m.Registers[i].Value)
	}
	copy(b[520:], data[:])
	if d.Version == 5 && d.Type == 3 {
		b = append(append(b, d.chip.tcb.TDX[:]...), make([]byte, 48)...)
	}
	return b
}

// enclaveReport returns an SGX report with only attributes and SVN set.
func enclaveReport(attributes byte, svn uint16) []byte {
	b := make([]byte, 384)
	b[48] = attributes
	binary.LittleEndian.PutUint16(b[258:], svn)
	return b
}

// qeReport returns the report of the quoting enclave that has an attestation key.
func qeReport(key, auth []byte) []byte {
	b := enclaveReport(0x15, dcapQESVN) // initialised, 64 bits, may ask for the provisioning key
	copy(b[128:], dcapQESigner[:])
	b[256] = 2
	digest := sha256.Sum256(slices.Concat(key, auth))
	copy(b[320:], digest[:])
	return b
}
