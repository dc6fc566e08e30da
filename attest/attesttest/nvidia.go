package attesttest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// NVIDIAVendor plays NVIDIA: a root, and under it the CA of each model with its GPUs.
type NVIDIAVendor struct {
	// Edit changes a certificate before it is signed; it selects certificates by common
	// name. The certificates of a model are made once.
	Edit func(c *x509.Certificate)
	// EditList changes a revocation list before it is signed; issuer is its issuer's common
	// name.
	EditList func(issuer string, l *x509.RevocationList)

	at     time.Time
	root   signer
	models map[string][2]signer // provisioner and CA, by model
}

// signer is a certificate with its key.
type signer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewNVIDIAVendor returns a vendor whose certificates are valid for ten years from a time
// on, and its revocation lists for a week.
func NewNVIDIAVendor(at time.Time) *NVIDIAVendor {
	v := &NVIDIAVendor{at: at, models: map[string][2]signer{}}
	key := newP384()
	template := v.template("NVIDIA Device Identity CA", true)
	v.root = signer{sign(template, template, &key.PublicKey, key), key}
	return v
}

func (v *NVIDIAVendor) template(name string, ca bool) *x509.Certificate {
	serial := make([]byte, 16)
	rand.Read(serial)
	c := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(serial), Subject: pkix.Name{Organization: []string{"NVIDIA Corporation"}, CommonName: name},
		NotBefore: v.at, NotAfter: v.at.AddDate(10, 0, 0), SignatureAlgorithm: x509.ECDSAWithSHA384, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ca {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	}
	return c
}

func (v *NVIDIAVendor) issue(template *x509.Certificate, by signer) signer {
	if v.Edit != nil {
		v.Edit(template)
	}
	key := newP384()
	return signer{sign(template, by.cert, &key.PublicKey, by.key), key}
}

// Root returns the digest that names the vendor in policy.
func (v *NVIDIAVendor) Root() attest.Digest { return wire.Sum(v.root.cert.RawSubjectPublicKeyInfo) }

// Rules returns rules that accept this vendor's GH100s with the one driver version that its
// GPUs report. They accept every state of a report except unencrypted links to other GPUs.
// They accept development mode, since the measurements are not compared.
func (v *NVIDIAVendor) Rules() attest.Rules {
	return attest.Rules{Roots: []attest.Digest{v.Root()}, NVIDIA: attest.NVIDIARules{
		Models: []string{"GH100"}, Chips: attest.List{Any: true}, Drivers: attest.List{Values: [][]byte{[]byte(NVIDIADriver)}},
		VBIOS: attest.List{Values: [][]byte{[]byte("96.00.9F.00.01")}}, Modes: []string{"SPT", "unstated"}, AnyMeasurements: true, Development: true,
	}}
}

// NVIDIADriver is the driver version that every GPU reports.
const NVIDIADriver = "580.159.03"

// NVIDIAGPU is one GPU. It implements [attest.Attester], and its reports have the form of
// NVIDIA's library.
type NVIDIAGPU struct {
	// Edit changes a report before it is signed.
	Edit func(r *NVIDIAReport)
	// DICE, if set, replaces the model's extensions in the leaf, from the next Restart on.
	DICE []pkix.Extension
	// FWID is the SHA-384 digest of the firmware, in the leaf from the next Restart on.
	FWID []byte
	// Development puts the GPU into development mode. Only the measurements in its reports
	// differ then.
	Development bool

	vendor *NVIDIAVendor
	model  string
	above  [4]signer // chip, provisioner, model, root
	leaf   signer
}

var _ attest.Attester = (*NVIDIAGPU)(nil)

// model returns the provisioner and the CA of a model.
func (v *NVIDIAVendor) model(name string) [2]signer {
	m, made := v.models[name]
	if !made {
		m[1] = v.issue(v.template("NVIDIA "+name+" Identity", true), v.root)
		m[0] = v.issue(v.template("NVIDIA "+name+" Provisioner ICA 1", true), m[1])
		v.models[name] = m
	}
	return m
}

// GPU returns a GPU of a model, "GH100" or "GB100"; the leaves of the two have different
// extensions.
func (v *NVIDIAVendor) GPU(model string) *NVIDIAGPU {
	g := &NVIDIAGPU{vendor: v, model: model, FWID: bytes.Repeat([]byte{0xf1}, 48)}
	m := v.model(model)
	g.above = [4]signer{v.issue(v.template(model+" A01 GSP BROM", true), m[0]), m[0], m[1], v.root}
	g.Restart()
	return g
}

// Restart makes the chip generate a new key for its firmware.
func (g *NVIDIAGPU) Restart() {
	template := g.vendor.template(g.model+" A01 GSP FMC LF", false)
	if template.ExtraExtensions = g.DICE; g.DICE == nil {
		template.ExtraExtensions = []pkix.Extension{g.DeviceID()}
		if g.model != "GH100" {
			template.ExtraExtensions = []pkix.Extension{g.TCBInfo(0x80, 0, 0, 1)}
		}
	}
	g.leaf = g.vendor.issue(template, g.above[0])
}

// Chip returns the digest that names the GPU in policy.
func (g *NVIDIAGPU) Chip() attest.Digest {
	return wire.Sum(g.above[0].cert.RawSubjectPublicKeyInfo)
}

type nvidiaFWID struct {
	Algorithm asn1.ObjectIdentifier
	Digest    []byte
}

func (g *NVIDIAGPU) firmware() nvidiaFWID {
	return nvidiaFWID{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, g.FWID}
}

// DeviceID returns the extension in the leaves of GH100.
func (g *NVIDIAGPU) DeviceID() pkix.Extension {
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1}, Value: der(struct {
		Version int
		Device  asn1.RawValue
		FWID    nvidiaFWID
	}{1, asn1.RawValue{FullBytes: g.above[0].cert.RawSubjectPublicKeyInfo}, g.firmware()})}
}

// TCBInfo returns the extension in the leaves of GB100, with operational flags.
func (g *NVIDIAGPU) TCBInfo(flags ...byte) pkix.Extension {
	context := func(tag int, compound bool, content []byte) asn1.RawValue {
		return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, IsCompound: compound, Bytes: content}
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 23, 133, 5, 4, 1, 1}, Value: der([]asn1.RawValue{
		context(0, false, []byte("NVIDIA")), context(1, false, []byte(g.model+" A01 GSP")),
		context(6, true, der(g.firmware())), context(7, false, append([]byte{0}, flags...)),
	})}
}

func der(v any) []byte {
	b, err := asn1.Marshal(v)
	if err != nil {
		panic(err) // the values above always encode
	}
	return b
}

// NVIDIAReport is the content that a GPU signs, in parts.
type NVIDIAReport struct {
	Request      []byte // 37 bytes
	Head         []byte // of the response, 4 bytes
	Measurements []byte // as many blocks as Count says
	Count        byte
	Responder    []byte
	Opaque       []byte
}

// NVIDIAField returns one opaque field.
func NVIDIAField(kind uint16, content []byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, kind)
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(content))), content...)
}

// NVIDIAMeasurement returns one block of the record: an index and a SHA-384 digest.
func NVIDIAMeasurement(index byte, digest []byte) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{index, 1}, uint16(3+len(digest)))
	return append(binary.LittleEndian.AppendUint16(append(b, 1), uint16(len(digest))), digest...)
}

// NVIDIATypedHead is the beginning of opaque data whose fields have types.
const NVIDIATypedHead = "NVDAOD\x00\x00\x02\x00\x00\x00"

// NVIDIATypedField returns one opaque field whose content has a type.
func NVIDIATypedField(kind, of uint16, content []byte) []byte {
	b := binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, kind), of)
	return append(binary.LittleEndian.AppendUint16(b, uint16(len(content))), content...)
}

// fields returns the head and the opaque fields after it, each with its type and length.
func (r *NVIDIAReport) fields() (head []byte, all [][]byte) {
	lead, rest := 4, r.Opaque
	if cut, typed := bytes.CutPrefix(rest, []byte(NVIDIATypedHead)); typed {
		head, rest, lead = rest[:len(NVIDIATypedHead)], cut, 6
	}
	for len(rest) > 0 {
		size := lead + int(binary.LittleEndian.Uint16(rest[lead-2:]))
		all, rest = append(all, rest[:size]), rest[size:]
	}
	return head, all
}

// Typed adds a type to each opaque field's content, as drivers from 620 on do.
func (r *NVIDIAReport) Typed() {
	_, all := r.fields()
	r.Opaque = []byte(NVIDIATypedHead)
	for _, f := range all {
		r.Opaque = append(r.Opaque, NVIDIATypedField(binary.LittleEndian.Uint16(f), 0x82, f[4:])...)
	}
}

// Without removes an opaque field from the report.
func (r *NVIDIAReport) Without(kind uint16) {
	head, all := r.fields()
	r.Opaque = bytes.Clone(head)
	for _, f := range all {
		if binary.LittleEndian.Uint16(f) != kind {
			r.Opaque = append(r.Opaque, f...)
		}
	}
}

// Set replaces the opaque field of a kind.
func (r *NVIDIAReport) Set(kind uint16, content []byte) {
	r.Without(kind)
	r.Add(kind, content)
}

// Add appends an opaque field in the form of the existing ones.
func (r *NVIDIAReport) Add(kind uint16, content []byte) {
	added := NVIDIAField(kind, content)
	if bytes.HasPrefix(r.Opaque, []byte(NVIDIATypedHead)) {
		added = NVIDIATypedField(kind, 0x82, content)
	}
	r.Opaque = append(r.Opaque, added...)
}

// Encode returns the parts with correct lengths, which is what a GPU signs.
func (r *NVIDIAReport) Encode() []byte {
	size := binary.LittleEndian.AppendUint32([]byte{r.Count}, uint32(len(r.Measurements)))[:4]
	opaque := binary.LittleEndian.AppendUint16(nil, uint16(len(r.Opaque)))
	return slices.Concat(r.Request, r.Head, size, r.Measurements, r.Responder, opaque, r.Opaque)
}

// Attest returns evidence whose nonce is the SHA-256 of the report data.
func (g *NVIDIAGPU) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	raw, chain, err := g.Report(ctx, sha256.Sum256(data[:]))
	return attest.Evidence{Platform: attest.NvidiaGPU, Raw: raw, Endorsed: attest.Endorsements{"cert_chain": chain}}, err
}

// Report returns a report for a nonce, and the GPU's chain in PEM.
func (g *NVIDIAGPU) Report(ctx context.Context, nonce [32]byte) (report, chain []byte, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	r := &NVIDIAReport{
		Request: slices.Concat([]byte{0x11, 0xe0, 0x01, 0xff}, nonce[:], []byte{0}), Head: []byte{0x11, 0x60, 0, 0},
		Responder: bytes.Repeat([]byte{0x5e}, 32), Count: 64,
	}
	for i := range r.Count {
		measured := []byte{i}
		if g.Development && i == 9 {
			measured = []byte("development")
		}
		digest := sha512.Sum384(measured)
		r.Measurements = append(r.Measurements, NVIDIAMeasurement(i+1, digest[:])...)
	}
	r.Opaque = g.opaque()
	if g.Edit != nil {
		g.Edit(r)
	}
	return g.Sign(r.Encode()), g.chain(), nil
}

// opaque returns the opaque data in the layout of drivers from 580 on. Fields that the
// appraiser does not read have the values of a captured report.
func (g *NVIDIAGPU) opaque() []byte {
	text := func(kind uint16, s string, size int) []byte {
		return NVIDIAField(kind, append([]byte(s), make([]byte, size-len(s))...))
	}
	data := slices.Concat(
		NVIDIAField(6, []byte{0, 0x9f, 0, 0x96, 1, 0, 0, 0}), NVIDIAField(14, []byte{0xa1, 4, 0, 0}),
		text(15, "862", 9), text(16, "0", 5), text(17, "1010", 5), text(18, "0205", 5), text(19, "", 2),
		text(3, NVIDIADriver, len(NVIDIADriver)+1), NVIDIAField(4, []byte{0x80, 1, 0, 0, 0, 0, 0, 0}),
		NVIDIAField(12, make([]byte, 256)), NVIDIAField(13, []byte{0, 0xc0, 1, 0}), NVIDIAField(11, []byte{0x55}),
		NVIDIAField(20, g.FWID),
	)
	if g.model == "GH100" {
		data = append(data, NVIDIAField(21, []byte{0x55})...)
	} else {
		data = append(data, text(35, g.model, len(g.model)+1)...)
	}
	return slices.Concat(data, NVIDIAField(34, []byte{1, 0}), NVIDIAField(36, []byte{0, 0}))
}

// Sign appends the firmware's signature.
func (g *NVIDIAGPU) Sign(signed []byte) []byte {
	digest := sha512.Sum384(signed)
	r, s, err := ecdsa.Sign(rand.Reader, g.leaf.key, digest[:])
	if err != nil {
		panic(err) // the key is valid
	}
	signature := make([]byte, 96)
	r.FillBytes(signature[:48])
	s.FillBytes(signature[48:])
	return append(slices.Clone(signed), signature...)
}

func (g *NVIDIAGPU) chain() []byte {
	var text []byte
	for _, s := range append([]signer{g.leaf}, g.above[:]...) {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw})...)
	}
	return bytes.TrimSuffix(text, []byte("\n")) // as NVML returns it
}

// Lists returns the vendor's two revocation lists for this GPU; revoked names certificates
// by common name.
func (g *NVIDIAGPU) Lists(revoked ...string) attest.Endorsements {
	return attest.Endorsements{"root_crl": g.list(3, revoked), "model_crl": g.list(2, revoked)}
}

// list returns the revocation list of the certificate at index issuer, which can revoke the
// certificate below it.
func (g *NVIDIAGPU) list(issuer int, revoked []string) []byte {
	v, by, below := g.vendor, g.above[issuer], g.above[issuer-1]
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: v.at, NextUpdate: v.at.AddDate(0, 0, 7), SignatureAlgorithm: x509.ECDSAWithSHA384}
	if slices.Contains(revoked, below.cert.Subject.CommonName) {
		list.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: below.cert.SerialNumber, RevocationTime: v.at}}
	}
	if v.EditList != nil {
		v.EditList(by.cert.Subject.CommonName, list)
	}
	return signList(list, by.cert, by.key)
}

// Service plays NVIDIA's server of revocation lists, for this GPU only.
func (g *NVIDIAGPU) Service() http.Handler {
	mux := http.NewServeMux()
	for path, issuer := range map[string]int{"l1-root": 3, "l2-" + strings.ToLower(g.model): 2} {
		mux.HandleFunc("GET /crl/"+path+".crl", func(w http.ResponseWriter, _ *http.Request) { w.Write(g.list(issuer, nil)) })
	}
	return mux
}

// NVIDIACollection responds with the evidence of GPUs in the output form of NVIDIA's
// `nvattest collect-evidence`, for the nonce at the end of the path in hexadecimal.
func NVIDIACollection(gpus ...*NVIDIAGPU) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		nonce, err := hex.DecodeString(path.Base(r.URL.Path))
		if err != nil || len(nonce) != 32 {
			http.Error(w, "a nonce of 32 bytes is wanted", http.StatusBadRequest)
			return
		}
		evidences := []map[string]any{}
		for _, g := range gpus {
			report, chain, err := g.Report(r.Context(), [32]byte(nonce))
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			evidences = append(evidences, map[string]any{"version": "1.0", "arch": "HOPPER", "nonce": hex.EncodeToString(nonce), "evidence": report, "certificate": chain})
		}
		json.NewEncoder(w).Encode(map[string]any{"evidences": evidences, "result_code": 0, "result_message": "Ok"})
	})
}
