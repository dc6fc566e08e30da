package tpm

import "github.com/cohort-tee/cohort/attest"

// Platform is any TPM 2.0. Its vendors' certificates come with the evidence.
func Platform() attest.PlatformInfo {
	return attest.PlatformInfo{Name: attest.TPM, Title: "TPM 2.0", Appraiser: func() attest.Appraiser { return new(Appraiser) }}
}
