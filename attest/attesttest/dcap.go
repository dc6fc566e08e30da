package attesttest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Serial numbers of Intel's own certificates; the chips' serial numbers are above them.
const (
	DCAPRootSerial = 1 + iota
	DCAPAuthoritySerial
	DCAPSigningSerial
)

// Names of Intel's certificates.
const (
	dcapRoot      = "Intel SGX Root CA"
	dcapAuthority = "Intel SGX PCK Platform CA"
	dcapSigning   = "Intel SGX TCB Signing"
	dcapPCK       = "Intel SGX PCK Certificate"
)

// DCAPVendor plays Intel for one family of platforms: a root, a CA for PCK certificates, a
// signer of collateral, and two revocation lists. Certificates and documents are valid
// around its time. Set a field before making what it should change: each quote and each
// call of Endorsements makes certificates, lists and documents anew.
type DCAPVendor struct {
	// Edit changes a certificate before it is signed; it selects certificates by common
	// name.
	Edit func(c *x509.Certificate)
	// Text changes the PEM text of certificates, which no signature covers.
	Text func(chain []byte) []byte
	// ListEdit changes a revocation list before it is signed; issuer is the serial number
	// of its issuer's certificate.
	ListEdit func(l *x509.RevocationList, issuer int64)
	// Document changes TCB info or QE identity before it is signed; it distinguishes them
	// by their "id".
	Document func(d map[string]any)
	// From and Until are the validity of the lists and documents.
	From, Until time.Time
	// TCB is the vendor's best level; a platform below it in any component is out of date.
	// Platform, Module and QE are the vendor's statements about the best level of each.
	TCB                  DCAPTCB
	Platform, Module, QE DCAPLevel

	at                       time.Time
	root, authority, signing *ecdsa.PrivateKey
	revoked                  map[int64][]x509.RevocationListEntry // by the issuer's serial number
}

// DCAPTCB is the versions of a platform's components. TDX is the TEE TCB SVN: the module's
// security version, its major version, and others.
type DCAPTCB struct {
	SGX [16]uint8
	PCE uint16
	TDX [16]uint8
}

// DCAPLevel is Intel's statement about a TCB level.
type DCAPLevel struct {
	Status     string
	Advisories []string
	Date       string // tcbDate, RFC 3339; omitted when empty
}

// Levels of a synthetic vendor: the security version of its best quoting enclave, and its
// evaluation number.
const (
	dcapQESVN      = 8
	dcapEvaluation = 18
)

// NewDCAPVendor returns a vendor whose levels are all up to date.
func NewDCAPVendor(at time.Time) *DCAPVendor {
	good := DCAPLevel{Status: "UpToDate", Date: "2026-08-12T00:00:00Z"}
	return &DCAPVendor{
		From: at.Add(-time.Hour), Until: at.Add(30 * 24 * time.Hour),
		TCB: DCAPTCB{
			SGX: [16]uint8{3, 3, 2, 2, 4, 1, 0, 5}, PCE: 13,
			TDX: [16]uint8{5, 1, 3},
		},
		Platform: good, Module: good, QE: good,
		at: at, root: newP256(), authority: newP256(), signing: newP256(),
		revoked: make(map[int64][]x509.RevocationListEntry),
	}
}

func newP256() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err) // the system's random source does not fail
	}
	return key
}

// Root returns the digest that names the vendor in policy.
func (v *DCAPVendor) Root() attest.Digest { return wire.Sum(v.rootCert().RawSubjectPublicKeyInfo) }

// Rules returns rules that accept this vendor's up-to-date chips, and no debug.
func (v *DCAPVendor) Rules() attest.Rules {
	return attest.Rules{Roots: []attest.Digest{v.Root()}, DCAP: attest.DCAPRules{Chips: attest.List{Any: true}}}
}

// issue issues a certificate, self-signed if issuer is nil.
func (v *DCAPVendor) issue(template, issuer *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	template.NotBefore, template.NotAfter = v.at.AddDate(-1, 0, 0), v.at.AddDate(7, 0, 0)
	template.SignatureAlgorithm = x509.ECDSAWithSHA256
	template.Subject.Organization = []string{"Intel Corporation"}
	template.BasicConstraintsValid = true
	if v.Edit != nil {
		v.Edit(template)
	}
	if issuer == nil {
		issuer = template
	}
	return sign(template, issuer, &key.PublicKey, signer)
}

// named returns a template of a CA certificate, or of an end-entity certificate.
func named(name string, serial int64, usage x509.KeyUsage) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name},
		KeyUsage: usage, IsCA: usage&x509.KeyUsageCertSign != 0, SubjectKeyId: []byte(name),
	}
}

func (v *DCAPVendor) rootCert() *x509.Certificate {
	return v.issue(named(dcapRoot, DCAPRootSerial, x509.KeyUsageCertSign|x509.KeyUsageCRLSign), nil, v.root, v.root)
}

func (v *DCAPVendor) authorityCert(root *x509.Certificate) *x509.Certificate {
	template := named(dcapAuthority, DCAPAuthoritySerial, x509.KeyUsageCertSign|x509.KeyUsageCRLSign)
	return v.issue(template, root, v.authority, v.root)
}

// chain returns certificates in PEM, in order.
func (v *DCAPVendor) chain(certs ...*x509.Certificate) []byte {
	var text []byte
	for _, cert := range certs {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	if v.Text != nil {
		text = v.Text(text)
	}
	return text
}

// Revoke adds a certificate's serial number to its issuer's revocation list: the root's for
// the constants above, the PCK CA's for chips.
func (v *DCAPVendor) Revoke(serial *big.Int) {
	issuer := int64(DCAPAuthoritySerial)
	if serial.Cmp(big.NewInt(DCAPSigningSerial)) <= 0 {
		issuer = DCAPRootSerial
	}
	entry := x509.RevocationListEntry{SerialNumber: serial, RevocationTime: v.at.Add(-time.Minute)}
	v.revoked[issuer] = append(v.revoked[issuer], entry)
}

func (v *DCAPVendor) list(issuer *x509.Certificate, key *ecdsa.PrivateKey) []byte {
	serial := issuer.SerialNumber.Int64()
	list := &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: v.From, NextUpdate: v.Until,
		RevokedCertificateEntries: v.revoked[serial],
	}
	if v.ListEdit != nil {
		v.ListEdit(list, serial)
	}
	return signList(list, issuer, key)
}

// Endorsements returns everything that appraisal needs beside the platform's quotes.
func (v *DCAPVendor) Endorsements(of attest.Platform) attest.Endorsements {
	root := v.rootCert()
	signer := v.issue(named(dcapSigning, DCAPSigningSerial, x509.KeyUsageDigitalSignature), root, v.signing, v.root)
	return attest.Endorsements{
		"tcb_info": v.signed("tcbInfo", v.tcbInfo(of)), "tcb_info_chain": v.chain(signer, root),
		"qe_identity": v.signed("enclaveIdentity", v.qeIdentity(of)), "qe_identity_chain": v.chain(signer, root),
		"pck_crl": v.list(v.authorityCert(root), v.authority), "root_crl": v.list(root, v.root),
	}
}

// signed returns a signed document in the form of Intel's PCS.
func (v *DCAPVendor) signed(name string, document map[string]any) []byte {
	if v.Document != nil {
		v.Document(document)
	}
	text, err := json.Marshal(document)
	if err != nil {
		panic(err) // maps of strings and numbers encode as JSON
	}
	return fmt.Appendf(nil, `{%q:%s,"signature":"%s"}`, name, text, hex.EncodeToString(signP256(v.signing, text)))
}

// signP256 returns an ECDSA signature in Intel's form: R and S.
func signP256(key *ecdsa.PrivateKey, signed []byte) []byte {
	digest := sha256.Sum256(signed)
	r, s, err := ecdsa.Sign(rand.Reader, key, digest[:])
	if err != nil {
		panic(err) // the system's random source does not fail
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signature
}

func (v *DCAPVendor) document(id string, version int) map[string]any {
	return map[string]any{
		"id": id, "version": version, "tcbEvaluationDataNumber": dcapEvaluation,
		"issueDate": v.From.UTC().Format(time.RFC3339), "nextUpdate": v.Until.UTC().Format(time.RFC3339),
	}
}

func (v *DCAPVendor) tcbInfo(of attest.Platform) map[string]any {
	d := v.document("SGX", 3)
	d["fmspc"], d["pceId"], d["tcbType"] = hex.EncodeToString(dcapFMSPC[:]), "0000", 0
	best, old := map[string]any{}, map[string]any{}
	best["sgxtcbcomponents"], best["pcesvn"] = components(v.TCB.SGX), v.TCB.PCE
	old["sgxtcbcomponents"], old["pcesvn"] = components([16]uint8{}), 0
	if of == attest.TDX {
		d["id"] = "TDX"
		best["tdxtcbcomponents"], old["tdxtcbcomponents"] = components(v.TCB.TDX), components([16]uint8{})
		signer := map[string]any{
			"mrsigner": hex.EncodeToString(make([]byte, 48)), "attributes": "0000000000000000", "attributesMask": "FFFFFFFFFFFFFFFF",
		}
		d["tdxModule"] = signer
		d["tdxModuleIdentities"] = []any{map[string]any{
			"id": fmt.Sprintf("TDX_%02X", v.TCB.TDX[1]), "mrsigner": signer["mrsigner"],
			"attributes": signer["attributes"], "attributesMask": signer["attributesMask"],
			"tcbLevels": versions(int(v.TCB.TDX[0]), v.Module),
		}}
	}
	d["tcbLevels"] = []any{v.Platform.of(best), outdated.of(old)}
	return d
}

func (v *DCAPVendor) qeIdentity(of attest.Platform) map[string]any {
	d := v.document("QE", 2)
	if of == attest.TDX {
		d["id"] = "TD_QE"
	}
	d["miscselect"], d["miscselectMask"] = "00000000", "FFFFFFFF"
	d["attributes"], d["attributesMask"] = "11000000000000000000000000000000", "FBFFFFFFFFFFFFFF0000000000000000"
	d["mrsigner"], d["isvprodid"] = hex.EncodeToString(dcapQESigner[:]), 2
	d["tcbLevels"] = versions(dcapQESVN, v.QE)
	return d
}

// outdated is the vendor's statement about every level below its best.
var outdated = DCAPLevel{Status: "OutOfDate", Advisories: []string{"INTEL-SA-00001"}, Date: "2024-03-13T00:00:00Z"}

func (l DCAPLevel) of(tcb map[string]any) map[string]any {
	level := map[string]any{"tcb": tcb, "tcbStatus": l.Status, "advisoryIDs": slices.Clone(l.Advisories)}
	if l.Date != "" {
		level["tcbDate"] = l.Date
	}
	return level
}

// versions returns two levels of a security version: best, and 2 as outdated. No level
// covers a version below 2.
func versions(best int, level DCAPLevel) []any {
	return []any{level.of(map[string]any{"isvsvn": best}), outdated.of(map[string]any{"isvsvn": 2})}
}

func components(svns [16]uint8) []any {
	var list []any
	for _, svn := range svns {
		list = append(list, map[string]any{"svn": svn})
	}
	return list
}
