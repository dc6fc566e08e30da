package dcap_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/dcap"
	"github.com/cohort-tee/cohort/internal/wire"
)

var (
	now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	use = attest.BindReportData(wire.LabelIssue, []byte("nonce"))
)

// scene has all inputs of an appraisal. A row of the refusal table changes the smallest part of a
// good one. Evidence and endorsements are made at the first use.
type scene struct {
	vendor   *attesttest.DCAPVendor
	chip     *attesttest.DCAPChip
	device   *attesttest.DCAPDevice
	question attest.Question
	rules    attest.Rules
}

// newScene returns a trust domain or an enclave on an up-to-date platform.
func newScene(of attest.Platform) *scene {
	s := &scene{vendor: attesttest.NewDCAPVendor(now)}
	s.rules = s.vendor.Rules()
	s.question = attest.Question{ReportData: use, At: now}
	s.use(of, s.vendor.Chip(s.vendor.TCB))
	return s
}

// use moves the trust domain or enclave to a platform.
func (s *scene) use(of attest.Platform, c *attesttest.DCAPChip) {
	measurement := attesttest.MeasureTDX("guest")
	if of == attest.SGX {
		measurement = attesttest.MeasureSGX("guest")
	}
	s.chip, s.device = c, c.Attester(measurement)
	s.question.Evidence.Platform = of
}

func (s *scene) evidence(t *testing.T) []byte {
	t.Helper()
	if s.question.Evidence.Raw == nil {
		made, err := s.device.Attest(context.Background(), use)
		if err != nil {
			t.Fatal(err)
		}
		s.question.Evidence = made
	}
	return s.question.Evidence.Raw
}

func (s *scene) endorsements() attest.Endorsements {
	if s.question.Endorsements == nil {
		s.question.Endorsements = s.vendor.Endorsements(s.question.Evidence.Platform)
	}
	return s.question.Endorsements
}

func (s *scene) appraise(t *testing.T) (attest.Result, error) {
	t.Helper()
	s.evidence(t)
	s.endorsements()
	s.question.Rules = map[attest.Platform]attest.Rules{s.question.Evidence.Platform: s.rules}
	return attesttest.Appraise(t, attest.NewVerifier(dcap.TDXPlatform().Appraiser(), dcap.SGXPlatform().Appraiser()), s.question)
}

// change is the change that a row makes to a good scene.
type change = func(t *testing.T, s *scene)

// Offsets: the body follows a header of 48 bytes; length and signature follow the body. The other
// offsets count from the end of the body of a version 4 quote.
const (
	body      = 48
	tdxEnd    = body + 584
	signature = tdxEnd + 4
	key       = signature + 64
	outerType = key + 64
	qeReport  = outerType + 6
	qeSigned  = qeReport + 384
	qeAuth    = qeSigned + 64
	pckType   = qeAuth + 2 + len("authentication data")
	pckChain  = pckType + 6
)

// edit sets bytes of header and body before they are signed.
func edit(offset int, bytes ...byte) change {
	return func(_ *testing.T, s *scene) {
		s.device.Edit = func(signed []byte) { copy(signed[offset:], bytes) }
	}
}

// editQE sets bytes of the quoting enclave's report before it is signed.
func editQE(offset int, bytes ...byte) change {
	return func(_ *testing.T, s *scene) {
		s.device.EditQE = func(report []byte) { copy(report[offset:], bytes) }
	}
}

// flip flips a bit of the quote after it is signed.
func flip(offset int) change {
	return func(t *testing.T, s *scene) { s.evidence(t)[offset] ^= 1 }
}

func without(roles ...string) change {
	return func(_ *testing.T, s *scene) {
		for _, role := range roles {
			delete(s.endorsements(), role)
		}
	}
}

func replace(role string, content []byte) change {
	return func(_ *testing.T, s *scene) { s.endorsements()[role] = content }
}

// certificate changes the certificates with a common name before they are signed.
func certificate(name string, edit func(c *x509.Certificate)) change {
	return func(_ *testing.T, s *scene) {
		s.vendor.Edit = func(c *x509.Certificate) {
			if c.Subject.CommonName == name {
				edit(c)
			}
		}
	}
}

// extension changes the SGX extension of the PCK certificate.
func extension(edit func(value []byte) []byte) change {
	return certificate(pckName, func(c *x509.Certificate) {
		c.ExtraExtensions[0].Value = edit(c.ExtraExtensions[0].Value)
	})
}

// document changes TCB info or QE identity before it is signed.
func document(id string, edit func(d map[string]any)) change {
	return func(_ *testing.T, s *scene) {
		s.vendor.Document = func(d map[string]any) {
			if d["id"] == id {
				edit(d)
			}
		}
	}
}

// set sets one field of a document.
func set(id, field string, value any) change {
	return document(id, func(d map[string]any) { d[field] = value })
}

// level changes the first level of a document.
func level(id string, edit func(l map[string]any)) change {
	return document(id, func(d map[string]any) { edit(d["tcbLevels"].([]any)[0].(map[string]any)) })
}

// list changes the revocation lists of an issuer before they are signed.
func list(issuer int64, edit func(l *x509.RevocationList)) change {
	return func(_ *testing.T, s *scene) {
		s.vendor.ListEdit = func(l *x509.RevocationList, of int64) {
			if of == issuer {
				edit(l)
			}
		}
	}
}

// Names of Intel's certificates.
const (
	rootName      = "Intel SGX Root CA"
	authorityName = "Intel SGX PCK Platform CA"
	signingName   = "Intel SGX TCB Signing"
	pckName       = "Intel SGX PCK Certificate"
)

var critical = pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}
