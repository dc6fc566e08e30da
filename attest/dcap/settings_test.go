package dcap_test

import (
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Offsets in a trust domain's body.
const (
	attributes = body + 120
	xfam       = body + 128
	owners     = body + 232
	current    = body + 6 + 584 // TEE TCB SVN 2, after the body descriptor of version 5
	service    = body + 6 + 600 // MRSERVICETD
)

// tdx15 makes quotes of version 5 with a body of TDX 1.5.
func tdx15(c change) change {
	return func(t *testing.T, s *scene) {
		s.device.Version, s.device.Type = 5, 3
		c(t, s)
	}
}

// TestSettings covers each setting that a host chooses for a trust domain and no register
// contains: the result without a rule, and the effect of each rule. A refusal names the bit or
// field.
func TestSettings(t *testing.T) {
	bits := func(name string, demand attest.Demand) attest.DCAPRules {
		return attest.DCAPRules{Attributes: attest.Bits{name: demand}}
	}
	features := func(name string, demand attest.Demand) attest.DCAPRules {
		return attest.DCAPRules{XFAM: attest.Bits{name: demand}}
	}
	one := append([]byte{1}, make([]byte, 47)...)
	zeros, pair := make([]byte, 48), append([]byte{1}, make([]byte, 95)...)
	list := func(values ...[]byte) attest.List { return attest.List{Values: values} }
	none := attest.DCAPRules{}
	tests := []struct {
		name   string
		change change
		rules  attest.DCAPRules
		want   string // part of the refusal; empty: accepted
	}{
		{"no rule", edit(attributes), none, ""},
		{"no SEPT_VE_DISABLE", edit(attributes+3, 0), none, "SEPT_VE_DISABLE"},
		{"no SEPT_VE_DISABLE, allowed", edit(attributes+3, 0), bits("SEPT_VE_DISABLE", attest.DemandAny), ""},
		{"PKS and KL, no rule", edit(attributes+3, 0x10|0x40|0x80), none, ""},
		{"PKS refused", edit(attributes+3, 0x10|0x40|0x80), bits("PKS", attest.DemandClear), "PKS"},
		{"PKS demanded", edit(attributes), bits("PKS", attest.DemandSet), "PKS"},
		{"KL refused", edit(attributes+3, 0x10|0x40|0x80), bits("KL", attest.DemandClear), "KL"},
		{"LASS demanded", edit(attributes), bits("LASS", attest.DemandSet), "LASS"},
		{"PERFMON, no rule", edit(attributes+7, 0x80), none, ""},
		{"PERFMON refused", edit(attributes+7, 0x80), bits("PERFMON", attest.DemandClear), "PERFMON"},
		{"ICSSD, no rule", edit(attributes+2, 1), none, ""},
		{"ICSSD demanded", edit(attributes+2, 1), bits("ICSSD", attest.DemandSet), ""},
		{"ICSSD missing", edit(attributes), bits("ICSSD", attest.DemandSet), "ICSSD"},
		{"a provisioning agent", edit(attributes+7, 0x40), none, "TPA"},
		{"a provisioning agent, allowed", edit(attributes+7, 0x40), bits("TPA", attest.DemandAny), ""},
		{"unknown attribute", edit(attributes+1, 1), none, "TD attributes: bit 8"},
		{"unknown attribute that makes a TD untrusted", edit(attributes, 2), none, "TD attributes: bit 1"},
		{"highest unknown attribute", edit(attributes+7, 0x20), none, "TD attributes: bit 61"},

		{"AMX refused", edit(xfam+2, 6), features("AMX_TILEDATA", attest.DemandClear), "AMX_TILEDATA"},
		{"processor trace refused", edit(xfam+1, 1), features("PT", attest.DemandClear), "PT"},
		{"shadow stacks demanded", edit(xfam), features("CET_S", attest.DemandSet), "CET_S"},
		{"unknown feature", edit(xfam+7, 0x80), none, "XFAM: bit 63"},

		{"an owner", edit(owners, 1), none, "MROWNER"},
		{"an owner's configuration", edit(owners+95, 1), none, "MROWNER"},
		{"any owner", edit(owners, 1), attest.DCAPRules{Owner: attest.List{Any: true}}, ""},
		{"the named owner", edit(owners, 1), attest.DCAPRules{Owner: list(pair)}, ""},
		{"not the named owner", edit(owners), attest.DCAPRules{Owner: list(pair)}, "MROWNER"},

		{"no service TD", tdx15(edit(service)), none, ""},
		{"a service TD", tdx15(edit(service, 1)), none, "MRSERVICETD"},
		{"any service TD", tdx15(edit(service, 1)), attest.DCAPRules{ServiceTD: attest.List{Any: true}}, ""},
		{"the named service TD", tdx15(edit(service, 1)), attest.DCAPRules{ServiceTD: list(one)}, ""},
		{"not the named service TD", tdx15(edit(service)), attest.DCAPRules{ServiceTD: list(one)}, "MRSERVICETD"},
		{"a quote that does not say, where it must", edit(attributes), attest.DCAPRules{ServiceTD: list(zeros)}, "as in every quote before TDX 1.5"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(attest.TDX)
			tt.change(t, s)
			rules := tt.rules
			rules.Chips = s.rules.DCAP.Chips
			s.rules.DCAP = rules
			got, err := s.appraise(t)
			if tt.want == "" && err != nil {
				t.Error(err)
			}
			if tt.want != "" && (!errors.Is(err, wire.BadTCB) || got.Appraised() || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("err = %v, want reason %q that names %q", err, wire.BadTCB, tt.want)
			}
		})
	}
}

// TestSettingsAreShown: the details list every known bit by its name, and a new bit by its
// number.
func TestSettingsAreShown(t *testing.T) {
	s := newScene(attest.TDX)
	edit(attributes, 0, 1, 1, 0x10)(t, s)
	claims, err := dcap.TDXPlatform().Appraiser().(interface {
		UnverifiedClaims([]byte) (attest.Claims, error)
	}).UnverifiedClaims(s.evidence(t))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"td_attribute_bits": []string{"bit 8", "ICSSD", "SEPT_VE_DISABLE"},
		"xfam_bits":         []string{"X87", "SSE", "AVX", "AVX512_OPMASK", "AVX512_ZMM_HI256", "AVX512_HI16_ZMM"},
	}
	got := maps.Clone(claims.Details)
	maps.DeleteFunc(got, func(name string, _ any) bool { return want[name] == nil })
	if !reflect.DeepEqual(got, want) {
		t.Errorf("details = %v, want %v", got, want)
	}
}

// TestRelaunch appraises a trust domain whose module was replaced while it ran, under each policy
// with one accepted status.
func TestRelaunch(t *testing.T) {
	const relaunch, relaunchCfg = "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"
	best, old := []byte{5, 1}, []byte{4, 1} // best is the vendor's newest
	tests := []struct {
		platform    string
		launch, now []byte
		want        string
	}{
		{upToDate, best, best, upToDate},
		{upToDate, old, old, outOfDate},
		{upToDate, old, best, relaunch},
		{hardening, old, best, relaunch},
		{config, old, best, relaunchCfg},
		{both, old, best, relaunchCfg},
		{outOfDate, old, best, outOfDate}, // the platform is out of date, not only the module
		{outOfDateCfg, old, best, outOfDateCfg},
		{revoked, old, best, revoked},
		{upToDate, best, old, outOfDate}, // an older module replaced the module
		{config, best, old, outOfDateCfg},
	}
	for _, tt := range tests {
		for _, accepted := range append(slices.Clone(words), relaunch, relaunchCfg) {
			s := newScene(attest.TDX)
			s.vendor.Platform.Status = tt.platform
			s.device.Version, s.device.Type = 5, 3
			s.device.Edit = func(signed []byte) {
				copy(signed[body+6:], tt.launch)
				copy(signed[current:], tt.now)
			}
			s.rules.DCAP.Statuses, s.rules.DCAP.Advisories = []string{accepted}, []string{"INTEL-SA-00001"}
			_, err := s.appraise(t)
			want := tt.want == upToDate || tt.want == accepted && accepted != revoked
			var refusal *attest.Refusal
			if (err == nil) != want || err != nil && (!errors.As(err, &refusal) || refusal.Got != tt.want) {
				t.Errorf("platform %s, launched under %v, now %v, policy %s: err = %v, want %s", tt.platform, tt.launch, tt.now, accepted, err, tt.want)
			}
		}
	}
	s := newScene(attest.TDX)
	tdx15(edit(current, 1))(t, s) // lower than every level of the module
	if _, err := s.appraise(t); !errors.Is(err, wire.BadTCB) {
		t.Errorf("a module now that Intel does not rate: err = %v, want reason %q", err, wire.BadTCB)
	}
}

// TestStatusOfNoDocument: a document of Intel's with a status that only a verifier can derive is
// refused.
func TestStatusOfNoDocument(t *testing.T) {
	s := newScene(attest.TDX)
	s.vendor.Platform.Status = "TDRelaunchAdvised"
	s.rules.DCAP.Statuses = []string{"TDRelaunchAdvised"}
	if _, err := s.appraise(t); !errors.Is(err, wire.Malformed) {
		t.Errorf("err = %v, want reason %q", err, wire.Malformed)
	}
}

// TestTCBDate: accepted statuses can admit old TCB levels, and min_tcb_date bounds their age.
func TestTCBDate(t *testing.T) {
	at := func(day string) time.Time {
		d, err := time.Parse(time.DateOnly, day)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	tests := []struct {
		name  string
		level string // date of the vendor's best level, which the platform has; empty: no date
		least string
		want  error
	}{
		{"met exactly", "2026-08-12T00:00:00Z", "2026-08-12", nil},
		{"a day too old", "2026-08-12T00:00:00Z", "2026-08-13", wire.BadTCB},
		{"a level without a date", "", "2020-01-01", wire.BadTCB},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(attest.SGX)
			s.vendor.Platform.Date = tt.level
			s.rules.DCAP.MinTCBDate = at(tt.least)
			if _, err := s.appraise(t); !errors.Is(err, tt.want) {
				t.Errorf("err = %v, want %v", err, tt.want)
			}
		})
	}
	s := newScene(attest.SGX)
	s.use(attest.SGX, s.vendor.Chip(s.vendor.TCB))
	claims, err := dcap.SGXPlatform().Appraiser().Appraise(s.evidence(t), s.endorsements(), s.rules, now)
	if err != nil || claims.Details["tcb_date"] != "2026-08-12T00:00:00Z" {
		t.Errorf("tcb_date = %v, %v", claims.Details["tcb_date"], err)
	}
}

// TestEarlyUpdate: Intel publishes an early TCB recovery next to the standard one, with the next
// evaluation number and in the same form. The policy decides which one is too old.
func TestEarlyUpdate(t *testing.T) {
	s := newScene(attest.TDX)
	s.rules.DCAP.MinEvaluation = 19
	if _, err := s.appraise(t); !errors.Is(err, wire.BadTCB) {
		t.Errorf("standard update: err = %v, want reason %q", err, wire.BadTCB)
	}
	s = newScene(attest.TDX)
	s.vendor.Document = func(d map[string]any) { d["tcbEvaluationDataNumber"] = 19 }
	s.rules.DCAP.MinEvaluation = 19
	if _, err := s.appraise(t); err != nil {
		t.Errorf("early update: %v", err)
	}
}
