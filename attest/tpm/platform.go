package tpm

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/tpm/tpmrules"
)

// Platform is any TPM 2.0. Its vendors' certificates come with the evidence.
func Platform() attest.PlatformInfo {
	return attest.PlatformInfo{PolicyRules: tpmrules.Rules, Title: "TPM 2.0", Appraiser: func() attest.Appraiser { return new(quoteAppraiser) }}
}
