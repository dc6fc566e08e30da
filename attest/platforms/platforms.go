// Package platforms is the table of all platforms: one value of each platform package.
// What appraises, fetches documents, reads evidence or measures images takes its
// platforms from here, so that a new platform is a package of its own and one line.
//
// It links every appraiser, and no driver of a device: files that ask a TEE for evidence
// are built for linux alone.
package platforms

import (
	"fmt"
	"slices"
	"strings"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/attest/nitro"
	"github.com/cohort-tee/cohort/attest/nvidia"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/attest/tpm"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Table is a list of platforms.
type Table []attest.PlatformInfo

// Supported is the table of this project's platforms.
func Supported() Table {
	return Table{
		snp.Platform(),
		dcap.TDXPlatform(),
		dcap.SGXPlatform(),
		nitro.Platform(),
		nvidia.Platform(),
		snp.AzurePlatform(),
		tpm.Platform(),
		soft.Platform(),
	}
}

// Lookup is the platform of a name.
func (t Table) Lookup(name attest.Platform) (attest.PlatformInfo, bool) {
	for _, p := range t {
		if p.Platform == name {
			return p, true
		}
	}
	return attest.PlatformInfo{}, false
}

// Verifier makes a verifier of all platforms of the table.
func (t Table) Verifier() *attest.Verifier {
	var appraisers []attest.Appraiser
	for _, p := range t {
		appraisers = append(appraisers, p.Appraiser())
	}
	return attest.NewVerifier(appraisers...)
}

// Documents lists the vendor's documents that belong to evidence, as far as it can be
// read; nothing in it is verified. Evidence of platforms without documents has none.
func (t Table) Documents(unverified attest.Evidence) []attest.Document {
	p, ok := t.Lookup(unverified.Platform)
	if !ok || p.Documents == nil {
		return nil
	}
	return p.Documents(unverified)
}

// Sources lists the services of all vendors, each once, in the order of the table.
func (t Table) Sources() []attest.Source {
	var all []attest.Source
	for _, p := range t {
		for _, s := range p.Sources {
			if !slices.ContainsFunc(all, func(known attest.Source) bool { return known.Name == s.Name }) {
				all = append(all, s)
			}
		}
	}
	return all
}

// ReadEvidence reads evidence as a device of some platform returns it, or in a wrapper (RFC
// 9999). It refuses other content with reason "platform".
func (t Table) ReadEvidence(content []byte) (attest.Evidence, error) {
	forms := []string{"a wrapper (RFC 9999)"}
	for _, p := range t {
		if p.Recognize == nil {
			continue
		}
		if p.RawForm != "" {
			forms = append(forms, p.RawForm)
		}
		if e, recognized, err := p.Recognize(content); recognized {
			return e, err
		}
	}
	var e attest.Evidence
	if text := strings.TrimSpace(string(content)); strings.HasPrefix(text, "[") || strings.HasPrefix(text, "{") {
		return e, e.UnmarshalJSON([]byte(text))
	}
	return e, wire.Refuse(wire.NoPlatform, "evidence: form", fmt.Sprintf("%d bytes that begin with %.16q", len(content), content), strings.Join(forms, ", "))
}
