package dcap_test

import (
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestAppraise: quotes of each version and body type are accepted.
func TestAppraise(t *testing.T) {
	tests := []struct {
		of            attest.Platform
		version, kind uint16
	}{
		{attest.SGX, 3, 0}, {attest.SGX, 4, 0}, {attest.SGX, 5, 1},
		{attest.TDX, 4, 0}, {attest.TDX, 5, 2}, {attest.TDX, 5, 3},
	}
	want := map[attest.Platform]attest.Measurement{
		attest.TDX: attesttest.MeasureTDX("guest"), attest.SGX: attesttest.MeasureSGX("guest"),
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.of, " version ", tt.version, " type ", tt.kind), func(t *testing.T) {
			s := newScene(tt.of)
			s.device.Version, s.device.Type = tt.version, tt.kind
			got, err := s.appraise(t)
			if err != nil {
				t.Fatal(err)
			}
			if err := attest.Match(want[tt.of], got.Measurement()); err != nil {
				t.Error(err)
			}
			if want := hex.EncodeToString(s.chip.ID()); got.ChipID() != want {
				t.Errorf("chip = %q, want %q", got.ChipID(), want)
			}
		})
	}
}

// TestVersionsRefuse: each body type belongs to one platform, and version 3 to SGX only.
func TestVersionsRefuse(t *testing.T) {
	tests := []struct {
		of            attest.Platform
		version, kind uint16
	}{
		{attest.TDX, 3, 0}, {attest.TDX, 5, 1}, {attest.TDX, 5, 0}, {attest.TDX, 5, 4}, {attest.SGX, 5, 2}, {attest.SGX, 5, 3}, {attest.SGX, 2, 0}, {attest.SGX, 6, 1},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.of, " version ", tt.version, " type ", tt.kind), func(t *testing.T) {
			s := newScene(tt.of)
			s.device.Version, s.device.Type = tt.version, tt.kind
			if _, err := s.appraise(t); !errors.Is(err, wire.Malformed) {
				t.Errorf("err = %v, want reason %q", err, wire.Malformed)
			}
		})
	}
}

// TestPadding: zeros after a quote are accepted, as clouds add them; other bytes are refused.
func TestPadding(t *testing.T) {
	for _, of := range []attest.Platform{attest.TDX, attest.SGX} {
		s := newScene(of)
		raw := s.evidence(t)
		s.question.Evidence.Raw = append(raw, make([]byte, 3000)...)
		if _, err := s.appraise(t); err != nil {
			t.Errorf("%s with zeros: %v", of, err)
		}
		for _, at := range []int{0, 1500, 2999} {
			s.question.Evidence.Raw[len(raw)+at] = 1
			if _, err := s.appraise(t); !errors.Is(err, wire.Malformed) {
				t.Errorf("%s with a byte at %d: err = %v, want reason %q", of, at, err, wire.Malformed)
			}
			s.question.Evidence.Raw[len(raw)+at] = 0
		}
	}
}

// TestMemory: cached results for a platform do not replace checks of time, rules and collateral.
func TestMemory(t *testing.T) {
	s := newScene(attest.TDX)
	appraiser := dcap.TDXPlatform().Appraiser()
	raw, endorsed := s.evidence(t), s.endorsements()
	if _, err := appraiser.Appraise(raw, endorsed, s.rules, now); err != nil {
		t.Fatal(err)
	}
	stranger, newer := s.rules, s.rules
	stranger.Roots = []attest.Digest{{1}}
	newer.DCAP.MinEvaluation = 19
	s.vendor.Platform.Status, s.vendor.QE.Status = "OutOfDate", "OutOfDate"
	s.vendor.Revoke(s.chip.Serial())
	s.vendor.Revoke(big.NewInt(attesttest.DCAPAuthoritySerial))
	certificate(signingName, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })(t, s)
	made := s.vendor.Endorsements(attest.TDX)
	with := func(role string) attest.Endorsements {
		other := maps.Clone(endorsed)
		other[role] = made[role]
		return other
	}
	unlisted := maps.Clone(endorsed)
	delete(unlisted, "pck_crl")
	tests := []struct {
		name     string
		endorsed attest.Endorsements
		rules    attest.Rules
		at       time.Time
		want     attest.Reason
	}{
		{"later", endorsed, s.rules, s.vendor.Until.Add(time.Second), wire.Expired},
		{"other roots", endorsed, stranger, now, wire.UnknownRoot},
		{"stricter rules", endorsed, newer, now, wire.BadTCB},
		{"newer TCB info", with("tcb_info"), s.rules, now, wire.BadTCB},
		{"newer QE identity", with("qe_identity"), s.rules, now, wire.BadTCB},
		{"newer chain of TCB info", with("tcb_info_chain"), s.rules, now, wire.Expired},
		{"newer chain of QE identity", with("qe_identity_chain"), s.rules, now, wire.Expired},
		{"newer PCK list", with("pck_crl"), s.rules, now, wire.Revoked},
		{"newer root list", with("root_crl"), s.rules, now, wire.Revoked},
		{"no list", unlisted, s.rules, now, wire.CRLMissing},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := appraiser.Appraise(raw, tt.endorsed, tt.rules, tt.at); !errors.Is(err, tt.want) {
				t.Errorf("err = %v, want reason %q", err, tt.want)
			}
		})
	}
	s.use(attest.TDX, s.vendor.Chip(s.vendor.TCB))
	s.question.Evidence.Raw = nil
	if _, err := appraiser.Appraise(s.evidence(t), endorsed, s.rules, now); err != nil {
		t.Errorf("another chip: %v", err)
	}
	if _, err := appraiser.Appraise(raw, endorsed, s.rules, now); err != nil {
		t.Errorf("the first again: %v", err)
	}
}

// TestIssued: a document issued up to two minutes ahead counts, and the result has the newest
// time of issue.
func TestIssued(t *testing.T) {
	s, newest := newScene(attest.TDX), now.Add(2*time.Minute)
	set("TD_QE", "issueDate", newest.Format(time.RFC3339))(t, s)
	if r, err := s.appraise(t); err != nil || !r.Issued().Equal(newest) {
		t.Errorf("got %v, %v, want %v", r.Issued(), err, newest)
	}
}
