package systest

import (
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// onAzure turns the TPM's machine into an Azure machine, and returns its attester and the
// measurement that its evidence claims, unverified.
func (v *vendors) onAzure() (attest.Attester, attest.Measurement) {
	v.host.Helper()
	if v.paravisor == nil {
		v.tpm.Paravisor(v.host, v.chip.Attester(attesttest.MeasureSNP("paravisor")))
		var err error
		if v.paravisor, err = snp.NewAzureAttester(v.machine()); err != nil {
			v.host.Fatal(err)
		}
	}
	e, err := v.paravisor.Attest(v.host.Context(), attest.ReportData{1})
	if err != nil {
		v.host.Fatal(err)
	}
	claims, err := snp.AzurePlatform().Appraiser().(interface {
		UnverifiedClaims([]byte) (attest.Claims, error)
	}).UnverifiedClaims(e.Raw)
	if err != nil {
		v.host.Fatal(err)
	}
	return v.paravisor, claims.Measurement
}

// TestAzure: a unit on an Azure machine, played by a software TPM and an AMD chip, gets a
// certificate. The chip's certificate and revocation list come from the authority's
// collateral. A unit on a kernel that the policy does not name gets no certificate.
func TestAzure(t *testing.T) {
	v := newMachine(t)
	e := settle(t, v, attest.Nitro, attest.AzureSNP)
	u, err := e.enrol(attest.AzureSNP, "scoring 1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := get(t, e.dial(serve(t, u, "azure")), "https://"+ServerName("scoring")+"/")
	if err != nil || got != "azure" {
		t.Errorf("got %q, %v", got, err)
	}
	v.tpm.Extend(t, 4, "another kernel")
	_, err = e.enrol(attest.AzureSNP, "scoring 1")
	wantRule(t, err, wire.NotMeasured, "measurement: pcr4")
	next := e.NextPolicy(azureMilanRow, "")
	wantCut(t, e.Steps[0], next)
	push(t, e.Cluster, next)
	_, err = e.enrol(attest.AzureSNP, "scoring 1")
	testworld.Refused(t, err, wire.NoPlatform)
}
