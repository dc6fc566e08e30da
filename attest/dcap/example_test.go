package dcap_test

import (
	"context"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/dcap"
)

// A verifier appraises a trust domain's quote with Intel's collateral. Here a test vendor stands
// for Intel, and a policy accepts one more status.
func ExampleTDX() {
	intel := attesttest.NewDCAPVendor(now)
	intel.Platform = attesttest.DCAPLevel{Status: "SWHardeningNeeded", Advisories: []string{"INTEL-SA-00615"}}
	evidence, err := intel.Chip(intel.TCB).Attester(attesttest.MeasureTDX("guest")).Attest(context.Background(), use)
	if err != nil {
		fmt.Println(err)
		return
	}
	rules := intel.Rules()
	rules.DCAP.Statuses = []string{"SWHardeningNeeded"}
	for _, advisories := range [][]string{nil, {"INTEL-SA-00615"}} {
		rules.DCAP.Advisories = advisories
		result, err := attest.NewVerifier(dcap.TDXPlatform().Appraiser()).Appraise(attest.Question{
			Evidence:     evidence,
			Endorsements: intel.Endorsements(attest.TDX),
			ReportData:   use,
			Rules:        map[attest.Platform]attest.Rules{attest.TDX: rules},
			At:           now,
		})
		fmt.Println(result.Appraised(), err)
	}
	// Output:
	// false tcb-status: dcap: advisory: got "INTEL-SA-00615", want "one that policy accepts"
	// true <nil>
}
