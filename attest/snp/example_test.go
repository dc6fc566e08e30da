package snp_test

import (
	"context"
	"fmt"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/snp"
)

// A verifier appraises a guest's report with the endorsements of its chip. Here a test vendor
// stands for AMD.
func ExampleAppraiser() {
	amd := attesttest.NewSNPVendor("Milan", now)
	chip := amd.Chip(attest.SNPTCB{Bootloader: 4, SNP: 24, Microcode: 219})
	evidence, err := chip.Attester(attesttest.MeasureSNP("guest")).Attest(context.Background(), use)
	if err != nil {
		fmt.Println(err)
		return
	}
	rules := amd.Rules()
	rules.SNP.Generations["Milan"] = attest.SNPFloor{Committed: attest.SNPTCB{SNP: 25}}
	_, err = attest.NewVerifier(snp.Platform().Appraiser()).Appraise(attest.Question{
		Evidence:     evidence,
		Endorsements: chip.Endorsements(),
		ReportData:   use,
		Rules:        map[attest.Platform]attest.Rules{attest.SNP: rules},
		At:           now,
	})
	fmt.Println(err)
	// Output: tcb-status: snp: committed snp: got "24", want "at least 25"
}
