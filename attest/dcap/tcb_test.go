package dcap_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Statuses, as Intel writes them.
const (
	upToDate     = "UpToDate"
	hardening    = "SWHardeningNeeded"
	config       = "ConfigurationNeeded"
	both         = "ConfigurationAndSWHardeningNeeded"
	outOfDate    = "OutOfDate"
	outOfDateCfg = "OutOfDateConfigurationNeeded"
	revoked      = "Revoked"
)

var words = []string{upToDate, hardening, config, both, outOfDate, outOfDateCfg, revoked}

// joined is Intel's table that joins a platform's status with that of a module or QE, which is
// UpToDate, OutOfDate or Revoked.
var joined = []struct{ platform, part, want string }{
	{upToDate, upToDate, upToDate},
	{hardening, upToDate, hardening},
	{config, upToDate, config},
	{both, upToDate, both},
	{outOfDate, upToDate, outOfDate},
	{outOfDateCfg, upToDate, outOfDateCfg},
	{revoked, upToDate, revoked},
	{upToDate, outOfDate, outOfDate},
	{hardening, outOfDate, outOfDate},
	{config, outOfDate, outOfDateCfg},
	{both, outOfDate, outOfDateCfg},
	{outOfDate, outOfDate, outOfDate},
	{outOfDateCfg, outOfDate, outOfDateCfg},
	{revoked, outOfDate, revoked},
	{upToDate, revoked, revoked},
	{hardening, revoked, revoked},
	{config, revoked, revoked},
	{both, revoked, revoked},
	{outOfDate, revoked, revoked},
	{outOfDateCfg, revoked, revoked},
	{revoked, revoked, revoked},
}

// TestStatuses appraises every status of the platform, joined with every status of its QE and of
// its TDX module, under each policy with one accepted status.
func TestStatuses(t *testing.T) {
	parts := map[string]func(v *attesttest.DCAPVendor) *attesttest.DCAPLevel{
		"QE":     func(v *attesttest.DCAPVendor) *attesttest.DCAPLevel { return &v.QE },
		"module": func(v *attesttest.DCAPVendor) *attesttest.DCAPLevel { return &v.Module },
	}
	for part, of := range parts {
		for _, row := range joined {
			s := newScene(attest.TDX)
			s.vendor.Platform.Status, of(s.vendor).Status = row.platform, row.part
			for _, accepted := range words {
				s.rules.DCAP.Statuses = []string{accepted}
				_, err := s.appraise(t)
				want := row.want == upToDate || row.want == accepted && accepted != revoked
				var refusal *attest.Refusal
				if got := err == nil; got != want {
					t.Errorf("platform %s, %s %s, policy %s: err = %v", row.platform, part, row.part, accepted, err)
				}
				if err != nil && (!errors.As(err, &refusal) || refusal.Reason != wire.BadTCB || refusal.Got != row.want) {
					t.Errorf("platform %s, %s %s, policy %s: err = %v, want %s refused", row.platform, part, row.part, accepted, err, row.want)
				}
			}
		}
	}
}

// TestAdvisories: the advisories of each matched level count, and no others.
func TestAdvisories(t *testing.T) {
	s := newScene(attest.TDX)
	s.vendor.Platform.Advisories = []string{"INTEL-SA-3", "INTEL-SA-1"}
	s.vendor.Module.Advisories = []string{"INTEL-SA-2", "INTEL-SA-1"}
	s.vendor.QE.Advisories = []string{"INTEL-SA-4"}
	all := []string{"INTEL-SA-1", "INTEL-SA-2", "INTEL-SA-3", "INTEL-SA-4"}
	s.rules.DCAP.Advisories = all
	claims, err := dcap.TDXPlatform().Appraiser().Appraise(s.evidence(t), s.endorsements(), s.rules, now)
	if err != nil {
		t.Fatal(err)
	}
	if got := claims.Details["advisories"].([]string); !slices.Equal(got, all) {
		t.Errorf("advisories = %q, want %q", got, all)
	}
	for i, missing := range all {
		s.rules.DCAP.Advisories = slices.Delete(slices.Clone(all), i, i+1)
		_, err := s.appraise(t)
		if !errors.Is(err, wire.BadTCB) || !strings.Contains(err.Error(), missing) {
			t.Errorf("without %s: err = %v", missing, err)
		}
	}
}

// TestComponents lowers each version by one. The platform is then at its lower level, which is
// out of date.
func TestComponents(t *testing.T) {
	at := func(edit func(tcb *attesttest.DCAPTCB)) error {
		s := newScene(attest.TDX)
		for i := range 16 {
			s.vendor.TCB.SGX[i], s.vendor.TCB.TDX[i] = 5, 5
		}
		s.vendor.TCB.TDX[1] = 1
		tcb := s.vendor.TCB
		edit(&tcb)
		s.use(attest.TDX, s.vendor.Chip(tcb))
		_, err := s.appraise(t)
		return err
	}
	if err := at(func(*attesttest.DCAPTCB) {}); err != nil {
		t.Fatal(err)
	}
	refused := func(name string, err error) {
		t.Helper()
		if !errors.Is(err, wire.BadTCB) || !strings.Contains(err.Error(), outOfDate) {
			t.Errorf("%s: err = %v, want %s", name, err, outOfDate)
		}
	}
	for i := range 16 {
		refused("SGX component", at(func(tcb *attesttest.DCAPTCB) { tcb.SGX[i]-- }))
		if i != 1 { // component 1 is the module's version, not a level
			refused("TDX component", at(func(tcb *attesttest.DCAPTCB) { tcb.TDX[i]-- }))
		}
	}
	refused("PCE", at(func(tcb *attesttest.DCAPTCB) { tcb.PCE-- }))
	s := newScene(attest.TDX)
	editQE(258, 7)(t, s)
	_, err := s.appraise(t)
	refused("QE", err)
}

// TestModuleVersions: components 0 and 1 count for the platform if the module's version is 0, and
// for the module otherwise.
func TestModuleVersions(t *testing.T) {
	tests := []struct {
		name     string
		platform [2]uint8 // demanded by the best level
		guest    [2]uint8 // of the trust domain
		module   bool     // the module has its own status
		want     string
	}{
		{"version 0, met", [2]uint8{5, 0}, [2]uint8{5, 0}, false, upToDate},
		{"version 0, not met", [2]uint8{5, 0}, [2]uint8{4, 0}, false, outOfDate},
		{"version 1, met", [2]uint8{5, 1}, [2]uint8{5, 1}, true, upToDate},
		{"version 1, not met", [2]uint8{5, 1}, [2]uint8{4, 1}, true, outOfDate},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(attest.TDX)
			copy(s.vendor.TCB.TDX[:], tt.platform[:])
			edit(body, tt.guest[:]...)(t, s)
			s.rules.DCAP.Statuses, s.rules.DCAP.Advisories = []string{outOfDate}, []string{"INTEL-SA-00001"}
			claims, err := dcap.TDXPlatform().Appraiser().Appraise(s.evidence(t), s.endorsements(), s.rules, now)
			if err != nil {
				t.Fatal(err)
			}
			status := claims.Details["tcb_status"].(map[string]any)
			module, rated := status["module"]
			if status["overall"] != tt.want || rated != tt.module || rated && module != tt.want {
				t.Errorf("status = %v, want %s", status, tt.want)
			}
		})
	}
}

// TestModuleIsNotThePlatform: the platform's level demands module components that no module has.
// They count only for a module of version 0.
func TestModuleIsNotThePlatform(t *testing.T) {
	for version, want := range map[uint8]bool{0: false, 1: true} {
		s := newScene(attest.TDX)
		level("TDX", func(l map[string]any) {
			components := l["tcb"].(map[string]any)["tdxtcbcomponents"].([]any)
			components[0], components[1] = map[string]any{"svn": 200}, map[string]any{"svn": 200}
		})(t, s)
		edit(body+1, version)(t, s)
		if _, err := s.appraise(t); (err == nil) != want {
			t.Errorf("version %d: err = %v, want accepted %v", version, err, want)
		}
	}
}
