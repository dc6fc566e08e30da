package dcap

import (
	"bytes"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/dcap/dcaprules"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Intel's services: PCS (version 4), and where the list of the root is.
var (
	pcs      = attest.Source{Name: "intel", Base: "https://api.trustedservices.intel.com", Usage: "Intel's service or a mirror of it"}
	rootList = attest.Source{Name: "intel-root", Base: "https://certificates.trustedservices.intel.com", Usage: "where Intel's root list is, or a mirror"}
)

// TDXPlatform is Intel TDX.
func TDXPlatform() attest.PlatformInfo { return platformInfo(newTDX, dcaprules.TDX, "Intel TDX") }

// SGXPlatform is Intel SGX.
func SGXPlatform() attest.PlatformInfo {
	p := platformInfo(newSGX, dcaprules.SGX, "Intel SGX with Gramine")
	p.RawForm = "" // one form of both platforms, named once
	p.MeasureImage = measureEnclave
	p.Image = "a signature structure (of Gramine: NAME.sig), a signed enclave that holds one, or an SGXS stream, of which the measurement is computed"
	return p
}

func platformInfo(appraiser func() *quoteAppraiser, rules attest.PolicyRules, title string) attest.PlatformInfo {
	return attest.PlatformInfo{
		PolicyRules: rules,
		Title:       title,
		Appraiser:   func() attest.Appraiser { return appraiser() },
		Sources:     []attest.Source{pcs, rootList},
		Documents:   documents,
		Recognize:   attest.Recognizer(rules.Platform, func(raw []byte) bool { return isQuote(raw) && teeOf(raw) == rules.Platform }),
		RawForm:     "DCAP quote",
	}
}

// isQuote reports whether bytes begin as a quote does: a version of two bytes, and a type
// of key, which is 0 in no quote. An SNP report has a version of four bytes.
func isQuote(raw []byte) bool {
	return len(raw) > headerSize && raw[0] >= 3 && raw[0] <= 5 && raw[1] == 0 && raw[2] != 0
}

// teeOf is the platform that the header of a quote names: anything but a trust domain is
// taken for an enclave, which appraisal checks.
func teeOf(quote []byte) attest.Platform {
	if binary.LittleEndian.Uint32(quote[4:]) == teeTDX {
		return attest.TDX
	}
	return attest.SGX
}

// maxCertificates bounds the certificates of one text.
const maxCertificates = 8

// documents reads the PCK certificate inside a quote: the first of those in PEM that are
// its end, but for zeros.
func documents(e attest.Evidence) []attest.Document {
	start := bytes.Index(e.Raw, []byte("-----BEGIN CERTIFICATE-----"))
	ders, err := wire.ParseCertificates("dcap: quote", bytes.TrimRight(e.Raw[max(start, 0):], "\x00"), maxCertificates)
	if err != nil || len(ders) == 0 {
		return nil
	}
	cert, err := x509.ParseCertificate(ders[0])
	if err != nil {
		return nil
	}
	p, err := readPCK(extension(cert))
	if err != nil {
		return nil
	}
	model, of, ca := hex.EncodeToString(p.fmspc), string(e.Platform), "platform"
	if strings.Contains(cert.Issuer.CommonName, "Processor") {
		ca = "processor"
	}
	return []attest.Document{
		{
			Role: "tcb_info", Kind: attest.StatementDocument, OfChip: true, Name: of + "/" + model + "/tcb_info.json",
			Source: pcs.Name, Path: "/" + of + "/certification/v4/tcb?fmspc=" + model, Chain: "TCB-Info-Issuer-Chain", Expires: statementExpires,
		},
		{
			Role: "qe_identity", Kind: attest.StatementDocument, Name: of + "/qe_identity.json",
			Source: pcs.Name, Path: "/" + of + "/certification/v4/qe/identity", Chain: "SGX-Enclave-Identity-Issuer-Chain", Expires: statementExpires,
		},
		{Role: "pck_crl", Kind: attest.RevocationListDocument, Name: "intel/pck_" + ca + "_crl.der", Source: pcs.Name, Path: "/sgx/certification/v4/pckcrl?ca=" + ca + "&encoding=der"},
		{Role: "root_crl", Kind: attest.RevocationListDocument, Name: "intel/root_crl.der", Source: rootList.Name, Path: "/IntelSGXRootCA.der"},
	}
}

// statementExpires reads when a statement of Intel's expires.
func statementExpires(content []byte) (time.Time, error) {
	type update struct{ NextUpdate time.Time }
	var s struct{ TCBInfo, EnclaveIdentity update }
	if err := json.Unmarshal(content, &s); err != nil {
		return time.Time{}, fmt.Errorf("reading the statement: %w", err)
	}
	if s.TCBInfo.NextUpdate.IsZero() {
		return s.EnclaveIdentity.NextUpdate, nil
	}
	return s.TCBInfo.NextUpdate, nil
}

// measureEnclave measures an SGXS stream, or reads a signature structure.
func measureEnclave(image []byte) (attest.Measurement, []string, error) {
	var notes []string
	if isSGXS(image) {
		m, unmeasured, err := measureSGXS(image)
		if unmeasured > 0 {
			notes = append(notes, fmt.Sprintf("%d bytes are loaded that nobody measures; the host may change them", unmeasured))
		}
		return m, notes, err
	}
	enclave, err := findSigstruct(image)
	if err != nil {
		return attest.Measurement{}, nil, err
	}
	if enclave.Debug {
		notes = append(notes, "its signer lets it run for debugging, which is refused unless policy allows it")
	}
	notes = append(notes, fmt.Sprintf("isvsvn is %d; `min_isvsvn` of [platform.sgx] is the floor", enclave.SVN))
	return enclave.Measurement, notes, nil
}
