package soft

import "github.com/cohort-tee/cohort/attest"

// Platform is the development TEE.
func Platform() attest.PlatformInfo {
	return attest.PlatformInfo{
		Name: attest.Soft, Title: "development TEE", Development: true,
		Appraiser: func() attest.Appraiser { return Appraiser{} },
	}
}
