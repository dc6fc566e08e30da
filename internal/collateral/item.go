package collateral

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// kind says how a document lives.
type kind int

const (
	certificate kind = iota // never changes while it lives
	statement               // the newest counts
	list                    // a revocation list: the newest counts, and policy says what none means
)

// item is one document: what it is for and where it is.
type item struct {
	role   string // in endorsements
	kind   kind
	ofChip bool   // of one chip or model, of which evidence can name any number
	name   string // in a mirror directory and in the cache
	url    string // empty when nobody is asked
	chain  string // the header of the vendor's answer that has the signer's certificates
}

// items lists the documents that belong to evidence, as far as it can be read.
// Nothing in it is checked, so a document may be of another chip or of none.
func (c *Collateral) items(e attest.Evidence) []item {
	switch e.Platform {
	case attest.SNP:
		return snpItems(e.Raw, at(c.config.AMD))
	case attest.AzureSNP:
		if fields, err := wire.Unframe(wire.LabelAzureEvidence, e.Raw, 5); err == nil {
			return snpItems(fields[0], at(c.config.AMD))
		}
	case attest.TDX, attest.SGX:
		return intelItems(e, at(c.config.Intel), at(c.config.IntelRoot))
	case attest.NvidiaGPU:
		return nvidiaItems(e.Endorsed["cert_chain"], at(c.config.NVIDIA))
	case attest.Nitro:
		return nitroItems(e.Raw, c.config.AWS)
	}
	return nil
}

// at makes URLs below a base, none below none.
func at(base string) func(path string) string {
	return func(path string) string {
		if base == "" {
			return ""
		}
		return strings.TrimSuffix(base, "/") + path
	}
}

// snpItems reads a report (docs/spec/evidence-snp.md has the offsets).
func snpItems(report []byte, amd func(string) string) []item {
	if len(report) != 1184 {
		return nil
	}
	product := product(report)
	kind := [...]string{0: "vcek", 1: "vlek"}
	signer := int(report[0x48] >> 2 & 7)
	if product == "" || signer >= len(kind) {
		return nil
	}
	folder, path := "snp/"+product+"/", "/"+kind[signer]+"/v1/"+product
	items := []item{
		{role: "ask_ark", name: folder + kind[signer] + "_chain.pem", url: amd(path + "/cert_chain")},
		{role: "crl", kind: list, name: folder + "crl.der", url: amd(path + "/crl")},
	}
	if chip := report[0x1a0:0x1e0]; signer == 0 && len(bytes.Trim(chip, "\x00")) > 0 {
		id, levels := vcek(product, chip, report[0x180:0x188])
		items = append(items, item{
			role: "vcek", ofChip: true, name: folder + id + "-" + hex.EncodeToString(report[0x180:0x188]) + ".der", url: amd(path + "/" + id + "?" + levels),
		})
	}
	return items // a VLEK comes with the evidence or not at all
}

// product is the CPU generation of a report. Version 2 does not tell: it is
// taken for a Milan, the only generation when it was current.
func product(report []byte) string {
	if binary.LittleEndian.Uint32(report) < 3 {
		return "Milan"
	}
	family, model := report[0x188], report[0x189]
	switch {
	case family == 0x19 && model < 0x10:
		return "Milan"
	case family == 0x19:
		return "Genoa"
	case family == 0x1a && model < 0x20: // Venice and later are not read yet
		return "Turin"
	}
	return ""
}

// vcek is the chip id as AMD's service takes it, and the firmware levels of the
// reported TCB.
func vcek(product string, chip, tcb []byte) (id, levels string) {
	if product == "Turin" {
		return hex.EncodeToString(chip[:8]), fmt.Sprintf("fmcSPL=%d&blSPL=%d&teeSPL=%d&snpSPL=%d&ucodeSPL=%d", tcb[0], tcb[1], tcb[2], tcb[3], tcb[7])
	}
	return hex.EncodeToString(chip), fmt.Sprintf("blSPL=%d&teeSPL=%d&snpSPL=%d&ucodeSPL=%d", tcb[0], tcb[1], tcb[6], tcb[7])
}

// maxChain bounds the certificates of one text.
const maxChain = 8

// intelItems reads the PCK certificate inside a quote: the first of those in PEM
// that are its end, but for zeros.
func intelItems(e attest.Evidence, pcs, root func(string) string) []item {
	start := bytes.Index(e.Raw, []byte("-----BEGIN CERTIFICATE-----"))
	ders, err := wire.Certificates("collateral: quote", bytes.TrimRight(e.Raw[max(start, 0):], "\x00"), maxChain)
	if err != nil || len(ders) == 0 {
		return nil
	}
	pck, err := x509.ParseCertificate(ders[0])
	if err != nil {
		return nil
	}
	fmspc := fmspc(pck)
	if len(fmspc) != 12 {
		return nil
	}
	ca := "platform"
	if strings.Contains(pck.Issuer.CommonName, "Processor") {
		ca = "processor"
	}
	of := string(e.Platform)
	return []item{
		{role: "tcb_info", kind: statement, ofChip: true, name: of + "/" + fmspc + "/tcb_info.json", url: pcs("/" + of + "/certification/v4/tcb?fmspc=" + fmspc), chain: "TCB-Info-Issuer-Chain"},
		{role: "qe_identity", kind: statement, name: of + "/qe_identity.json", url: pcs("/" + of + "/certification/v4/qe/identity"), chain: "SGX-Enclave-Identity-Issuer-Chain"},
		{role: "pck_crl", kind: list, name: "intel/pck_" + ca + "_crl.der", url: pcs("/sgx/certification/v4/pckcrl?ca=" + ca + "&encoding=der")},
		{role: "root_crl", kind: list, name: "intel/root_crl.der", url: root("/IntelSGXRootCA.der")},
	}
}

// nvidiaModel is narrow because nobody has checked the name yet: each one that it
// lets through may be asked for.
var nvidiaModel = regexp.MustCompile(`^NVIDIA (G[A-Z][0-9]{2}[0-9X]) Identity$`)

// nvidiaItems reads the model out of the chain that comes with a report. Its lists
// are named in the certificates, always by these paths.
func nvidiaItems(chain []byte, nvidia func(string) string) []item {
	ders, _ := wire.Certificates("collateral: chain", chain, maxChain)
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil
		}
		if found := nvidiaModel.FindStringSubmatch(cert.Subject.CommonName); found != nil {
			model := "l2-" + strings.ToLower(found[1]) + ".crl"
			return []item{
				{role: "root_crl", kind: list, name: "nvidia/l1-root.crl", url: nvidia("/crl/l1-root.crl")},
				{role: "model_crl", kind: list, name: "nvidia/" + model, url: nvidia("/crl/" + model)},
			}
		}
	}
	return nil
}

// Intel's extension of PCK certificates, and the FMSPC in it.
var (
	oidSGX   = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}
	oidFMSPC = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1, 4}
)

// fmspc is the kind of platform in hexadecimal, or empty.
func fmspc(pck *x509.Certificate) string {
	for _, e := range pck.Extensions {
		var pairs []struct {
			ID    asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		if _, err := asn1.Unmarshal(e.Value, &pairs); err != nil || !e.Id.Equal(oidSGX) {
			continue
		}
		for _, p := range pairs {
			if p.ID.Equal(oidFMSPC) {
				return hex.EncodeToString(p.Value.Bytes)
			}
		}
	}
	return ""
}

// end reads when a document ends: the first of its parts.
func (it item) end(d Document) (time.Time, error) {
	switch {
	case it.kind == list:
		crl, err := x509.ParseRevocationList(d.Content)
		if err != nil {
			return time.Time{}, fmt.Errorf("reading the list: %w", err)
		}
		return crl.NextUpdate, nil
	case it.kind == statement:
		return statementEnd(d)
	case strings.HasSuffix(it.name, ".pem"):
		return chainEnd(d.Content)
	}
	cert, err := x509.ParseCertificate(d.Content)
	if err != nil {
		return time.Time{}, fmt.Errorf("reading the certificate: %w", err)
	}
	return cert.NotAfter, nil
}

func statementEnd(d Document) (time.Time, error) {
	type update struct{ NextUpdate time.Time }
	var s struct{ TCBInfo, EnclaveIdentity update }
	if err := json.Unmarshal(d.Content, &s); err != nil {
		return time.Time{}, fmt.Errorf("reading the statement: %w", err)
	}
	end := s.TCBInfo.NextUpdate
	if end.IsZero() {
		end = s.EnclaveIdentity.NextUpdate
	}
	signer, err := chainEnd(d.Chain)
	if signer.Before(end) {
		end = signer
	}
	return end, err
}

func chainEnd(text []byte) (end time.Time, err error) {
	ders, err := wire.Certificates("collateral: chain", text, maxChain)
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return end, fmt.Errorf("reading the chain: %w", err)
		}
		if end.IsZero() || cert.NotAfter.Before(end) {
			end = cert.NotAfter
		}
	}
	if err == nil && end.IsZero() {
		err = errors.New("reading the chain: no certificate")
	}
	return end, err
}
