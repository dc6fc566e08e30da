package nitro

import (
	"bytes"
	"regexp"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/nitro/nitrorules"
)

// source represents AWS's buckets: each list is where a certificate names it, so that it
// has no base URL. A mirror has all lists below one.
var source = attest.Source{Name: "aws", Base: "aws", Usage: `where AWS's lists are: "aws" as its certificates say, or a mirror`}

// Platform is AWS Nitro enclaves.
func Platform() attest.PlatformInfo {
	return attest.PlatformInfo{
		PolicyRules: nitrorules.Rules,
		Title:       "AWS Nitro enclave",
		Appraiser:   func() attest.Appraiser { return documentAppraiser{} },
		Sources:     []attest.Source{source},
		Documents:   func(e attest.Evidence) []attest.Document { return documents(e.Raw) },
		// CBOR: an array of 4, whose first element is 4 bytes
		Recognize: attest.Recognizer(attest.Nitro, func(raw []byte) bool { return bytes.HasPrefix(raw, []byte{0x84, 0x44}) }),
		RawForm:   "Nitro document",
		MeasureImage: func(image []byte) (attest.Measurement, []string, error) {
			m, err := measureEIF(image)
			return m, nil, err
		},
		Image: "an enclave image file (EIF)",
	}
}

// awsList is how AWS's certificates name the revocation lists of the root, and of
// an authority of a region. The hosts are AWS's buckets and no others, because
// the evidence is not verified yet. A region's name is there twice.
var awsList = regexp.MustCompile(`http://(?:aws-nitro-enclaves-crl\.s3|crl-([a-z0-9-]{5,30})-aws-nitro-enclaves\.s3\.([a-z0-9-]{5,30}))\.amazonaws\.com/crl/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.crl`)

// documents reads where the lists are out of the certificates in a document: the
// first of each kind, for what an enclave itself states is behind them.
func documents(document []byte) []attest.Document {
	var all []attest.Document
	found := map[string]bool{}
	for _, m := range awsList.FindAllSubmatch(document, -1) {
		role := "root_crl"
		if len(m[1]) > 0 {
			role = "region_crl"
		}
		if found[role] || string(m[1]) != string(m[2]) {
			continue
		}
		found[role] = true
		id := string(m[3])
		all = append(all, attest.Document{
			Role: role, Kind: attest.RevocationListDocument, Name: "nitro/" + id + ".der",
			Source: source.Name, URL: string(m[0]), Path: "/crl/" + id + ".crl",
		})
	}
	return all
}
