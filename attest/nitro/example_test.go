package nitro_test

import (
	"context"
	"fmt"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/nitro"
)

// A verifier appraises an enclave's document, which contains its whole certificate chain. Here a
// test vendor stands for AWS.
func ExampleAppraiser() {
	aws := attesttest.NewNitroVendor(now)
	evidence, err := aws.Attester(attesttest.MeasureNitro("image")).Attest(context.Background(), use)
	if err != nil {
		fmt.Println(err)
		return
	}
	verifier := attest.NewVerifier(nitro.Platform().Appraiser())
	for _, age := range []time.Duration{time.Minute, 6 * time.Minute} {
		result, err := verifier.Appraise(attest.Question{
			Evidence:   evidence,
			ReportData: use,
			Rules:      map[attest.Platform]attest.Rules{attest.Nitro: aws.Rules()},
			At:         now.Add(age),
		})
		fmt.Println(result.Appraised(), err)
	}
	// Output:
	// true <nil>
	// false expired: nitro: age of the document: got "6m0s", want "at most 5m0s"
}
