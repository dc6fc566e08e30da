package policy

import (
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy/policytest"
)

// TestAdmitDevices: a release that demands devices is admitted only with them; a release that
// demands none is admitted with any.
func TestAdmitDevices(t *testing.T) {
	h := newHouse()
	data, agent := attest.BindReportData(wire.LabelIssue), policytest.Digest("2")
	equipped := func(chips ...string) attest.Result {
		claims := attest.Claims{Measurement: measured(agent, policytest.Digest("5")), ReportData: data[:]}
		e := attest.Evidence{Platform: attest.Soft}
		for _, chip := range chips {
			e.Devices = append(e.Devices, attest.Evidence{Platform: attest.NvidiaGPU, Raw: []byte(chip)})
		}
		r, err := attest.NewVerifier(attesttest.Vouch(claims), gpus).Appraise(attest.Question{
			Evidence: e, ReportData: data, Rules: map[attest.Platform]attest.Rules{attest.Soft: {}, attest.NvidiaGPU: {}}, At: policytest.Start,
		})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	a := h.found(t)
	for _, chips := range [][]string{nil, {"a"}} {
		if _, err := a.Admit("scoring", equipped(chips...)); err != nil {
			t.Errorf("%d devices where none is demanded: %v", len(chips), err)
		}
	}
	a.doc.Tasks["scoring"].Releases["2026.10"].Devices = map[attest.Platform]int{attest.NvidiaGPU: 2} // this development policy cannot name GPUs in its text
	for _, chips := range [][]string{nil, {"a"}} {
		grant, err := a.Admit("scoring", equipped(chips...))
		if policytest.Refused(t, err, wire.DeviceMissing); grant.Task != nil {
			t.Errorf("%d devices of two: got a grant", len(chips))
		}
	}
	if _, err := a.Admit("scoring", equipped("a", "b")); err != nil {
		t.Error(err)
	}
	if _, err := a.Admit("scoring", equipped("a", "b", "c")); err != nil {
		t.Error(err)
	}
}

// gpus is an appraiser that accepts every device; its evidence names the chip.
var gpus = attesttest.Voucher{Of: attest.NvidiaGPU, Says: func(raw []byte) attest.Claims {
	data := attest.BindReportData(wire.LabelIssue)
	return attest.Claims{Measurement: attest.Measurement{Platform: attest.NvidiaGPU}, ReportData: data[:], Chip: string(raw)}
}}
