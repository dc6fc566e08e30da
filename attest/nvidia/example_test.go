package nvidia_test

import (
	"context"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/nvidia"
)

// A GPU's evidence is appraised together with that of a TEE. Here test vendors stand for both
// manufacturers.
func ExampleAppraiser() {
	maker, vendor := attesttest.NewVendor(), attesttest.NewNVIDIAVendor(now)
	gpu := vendor.GPU("GH100") // stands for a Collector
	evidence, err := attest.WithDevices(maker.Chip().Attester(attesttest.Measure("training")), gpu).Attest(context.Background(), use)
	if err != nil {
		fmt.Println(err)
		return
	}
	evidence.Devices[0] = evidence.Devices[0].WithEndorsements(gpu.Lists())

	rules := maker.Rules()
	rules[attest.NvidiaGPU] = vendor.Rules()
	result, err := attesttest.Verifier(nvidia.Platform().Appraiser()).Appraise(attest.Question{Evidence: evidence, ReportData: use, Rules: rules, At: now})
	fmt.Println(result.Appraised(), err)
	for _, device := range result.Devices() {
		fmt.Println(device.Platform, device.NotVerified[0])
	}
	// Output:
	// true <nil>
	// nvidia-gpu measurements: compared with no reference value (RIM)
}
