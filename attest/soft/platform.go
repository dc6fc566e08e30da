package soft

import (
	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft/softrules"
)

// Platform is the development TEE.
func Platform() attest.PlatformInfo {
	return attest.PlatformInfo{
		PolicyRules: softrules.Rules, Title: "development TEE",
		Appraiser: func() attest.Appraiser { return softAppraiser{} },
	}
}
