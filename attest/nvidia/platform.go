package nvidia

import (
	"bytes"
	"crypto/x509"
	"regexp"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/nvidia/nvidiarules"
	"github.com/cohort-tee/cohort/internal/wire"
)

// source is NVIDIA's server of revocation lists, as its certificates name it. The lists
// are signed, so that plain HTTP serves.
var source = attest.Source{Name: "nvidia", Base: "http://crl.ndis.nvidia.com", Usage: "where NVIDIA's lists are, or a mirror"}

// Platform is NVIDIA GPUs, which are devices beside a TEE.
func Platform() attest.PlatformInfo {
	return attest.PlatformInfo{
		PolicyRules: nvidiarules.Rules,
		Title:       "NVIDIA GPU",
		Appraiser:   func() attest.Appraiser { return reportAppraiser{} },
		Sources:     []attest.Source{source},
		Documents:   func(e attest.Evidence) []attest.Document { return documents(e.Endorsed[roleChain]) },
		Recognize:   recognize,
		RawForm:     "report of an NVIDIA GPU or what nvattest prints",
	}
}

// recognize reads a report, as bytes or as the text that NVIDIA's tools print, or a
// collection that nvattest prints.
func recognize(content []byte) (attest.Evidence, bool, error) {
	if bytes.Contains(content, []byte(`"evidences"`)) {
		e, err := parseCollection(content)
		return e, true, err
	}
	if raw, _, err := decodeText(bytes.Join(bytes.Fields(content), nil)); err == nil && isReport(raw) {
		content = raw // others break the lines of the text
	}
	if !isReport(content) {
		return attest.Evidence{}, false, nil
	}
	return attest.Evidence{Platform: attest.NvidiaGPU, Raw: content}, true, nil
}

// isReport reports whether bytes begin with the request of a report: GET_MEASUREMENTS of
// SPDM 1.1.
func isReport(raw []byte) bool { return bytes.HasPrefix(raw, []byte{0x11, 0xe0}) }

// modelName is narrow because the name is not verified yet: each one that it lets
// through may be asked for.
var modelName = regexp.MustCompile(`^NVIDIA (G[A-Z][0-9]{2}[0-9X]) Identity$`)

// documents reads the model out of the chain that comes with a report. Its lists are
// named in the certificates, always by these paths.
func documents(unverified []byte) []attest.Document {
	ders, _ := wire.ParseCertificates("nvidia: chain", unverified, certificates+3)
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil
		}
		if found := modelName.FindStringSubmatch(cert.Subject.CommonName); found != nil {
			model := "l2-" + strings.ToLower(found[1]) + ".crl"
			return []attest.Document{
				{Role: "root_crl", Kind: attest.RevocationListDocument, Name: "nvidia/l1-root.crl", Source: source.Name, Path: "/crl/l1-root.crl"},
				{Role: "model_crl", Kind: attest.RevocationListDocument, Name: "nvidia/" + model, Source: source.Name, Path: "/crl/" + model},
			}
		}
	}
	return nil
}
