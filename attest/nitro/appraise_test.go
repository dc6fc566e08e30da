package nitro_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/nitro"
	"github.com/cohort-tee/cohort/internal/wire"
)

var (
	now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	use = attest.BindReportData(wire.LabelIssue, []byte("nonce"))
)

// scene has all inputs of an appraisal. A row of the refusal table changes the smallest part of a
// good one.
type scene struct {
	vendor *attesttest.NitroVendor
	device *attesttest.NitroDevice
	mangle func(raw []byte) []byte // applied after signing
	rules  attest.Rules
	at     time.Time
}

func newScene() *scene {
	s := &scene{vendor: attesttest.NewNitroVendor(now), at: now.Add(time.Minute)}
	s.start()
	s.rules = s.vendor.Rules()
	return s
}

func (s *scene) start() { s.device = s.vendor.Attester(attesttest.MeasureNitro("image")) }

func (s *scene) appraise(t *testing.T) (attest.Result, error) {
	t.Helper()
	evidence, err := s.device.Attest(context.Background(), use)
	if err != nil {
		t.Fatal(err)
	}
	if s.mangle != nil {
		evidence.Raw = s.mangle(evidence.Raw)
	}
	return attest.NewVerifier(nitro.Platform().Appraiser()).Appraise(attest.Question{
		Evidence:   evidence,
		ReportData: use,
		Rules:      map[attest.Platform]attest.Rules{attest.Nitro: s.rules},
		At:         s.at,
	})
}

func TestAppraise(t *testing.T) {
	got, err := newScene().appraise(t)
	if err != nil {
		t.Fatal(err)
	}
	if err := attest.Match(attesttest.MeasureNitro("image"), got.Measurement()); err != nil {
		t.Error(err)
	}
	if got.ChipID() != "i-test-enc1" || got.Debug() {
		t.Errorf("chip, debug = %q, %v, want i-test-enc1, false", got.ChipID(), got.Debug())
	}
}

type change = func(t *testing.T, s *scene)

// edit changes the document before it is signed.
func edit(f func(d *attesttest.NitroDocument)) change {
	return func(_ *testing.T, s *scene) { s.device.Edit = f }
}

// mangle changes the document after it is signed.
func mangle(f func(raw []byte) []byte) change {
	return func(_ *testing.T, s *scene) { s.mangle = f }
}

// payload changes the payload and signs the result.
func payload(f func(payload []byte) []byte) change {
	return func(t *testing.T, s *scene) {
		s.mangle = func(raw []byte) []byte {
			inner := bytes.Index(raw, []byte("\xa9\x69module_id"))
			signed, err := s.device.Sign(f(raw[inner : len(raw)-98]))
			if err != nil {
				t.Fatal(err)
			}
			return signed
		}
	}
}

func certificate(name string, f func(c *x509.Certificate)) change {
	return func(_ *testing.T, s *scene) {
		s.vendor.Edit = func(c *x509.Certificate) {
			if c.Subject.CommonName == name {
				f(c)
			}
		}
		s.start()
	}
}

func TestRefuse(t *testing.T) {
	tests := []struct {
		name   string
		change change
		want   attest.Reason
	}{
		// Encoding.
		{"empty", mangle(func(raw []byte) []byte { return nil }), wire.Malformed},
		{"one byte less", mangle(func(raw []byte) []byte { return raw[:len(raw)-1] }), wire.Malformed},
		{"one byte more", mangle(func(raw []byte) []byte { return append(raw, 0) }), wire.Malformed},
		{"tagged", mangle(func(raw []byte) []byte { return append([]byte{0xd2}, raw...) }), wire.Malformed},
		{"too large", mangle(func(raw []byte) []byte { return append(raw, make([]byte, wire.MaxEvidence)...) }), wire.TooLarge},
		{"an unprotected header", mangle(func(raw []byte) []byte {
			return bytes.Replace(raw, []byte("\x38\x22\xa0"), []byte("\x38\x22\xa1\x04\x41\x00"), 1)
		}), wire.Malformed},
		{"another algorithm", mangle(func(raw []byte) []byte {
			return bytes.Replace(raw, []byte("\x01\x38\x22"), []byte("\x01\x38\x23"), 1)
		}), wire.Malformed},
		{"a longer head than needed", mangle(func(raw []byte) []byte {
			return bytes.Replace(raw, []byte("\x84\x44\xa1"), []byte("\x84\x58\x04\xa1"), 1)
		}), wire.Malformed},
		{"a longer head of the payload than needed", mangle(func(raw []byte) []byte {
			return bytes.Replace(raw, []byte("\x22\xa0\x59"), []byte("\x22\xa0\x5a\x00\x00"), 1)
		}), wire.Malformed},
		{"payload with trailing bytes", payload(func(p []byte) []byte { return append(bytes.Clone(p), 0) }), wire.Malformed},
		{"payload with an unknown field", payload(func(p []byte) []byte {
			return append(append([]byte{0xaa}, p[1:]...), "\x61x\xf6"...)
		}), wire.Malformed},
		{"payload with a field twice", payload(func(p []byte) []byte {
			return append(append([]byte{0xaa}, p[1:]...), "\x65nonce\xf6"...)
		}), wire.Malformed},
		{"payload with a tagged field", payload(func(p []byte) []byte {
			return bytes.Replace(p, []byte("\x69user_data"), []byte("\x69user_data\xd8\x40"), 1)
		}), wire.Malformed},
		{"payload that is no map", payload(func([]byte) []byte { return []byte{0x80} }), wire.Malformed},

		// Fields.
		{"no module id", edit(func(d *attesttest.NitroDocument) { d.ModuleID = "" }), wire.Malformed},
		{"another digest", edit(func(d *attesttest.NitroDocument) { d.Digest = "SHA256" }), wire.Malformed},
		{"no time", edit(func(d *attesttest.NitroDocument) { d.Made = time.UnixMilli(0) }), wire.Malformed},
		{"time beyond all", edit(func(d *attesttest.NitroDocument) { d.Made = time.UnixMilli(1 << 60) }), wire.Malformed},
		{"no PCR 8", edit(func(d *attesttest.NitroDocument) { delete(d.PCRs, 8) }), wire.Malformed},
		{"short PCR", edit(func(d *attesttest.NitroDocument) { d.PCRs[4] = d.PCRs[4][:47] }), wire.Malformed},
		{"PCR 32", edit(func(d *attesttest.NitroDocument) { d.PCRs[32] = make([]byte, 48) }), wire.Malformed},
		{"empty bundle", edit(func(d *attesttest.NitroDocument) { d.Bundle = nil }), wire.Malformed},
		{"bundle of nine", edit(func(d *attesttest.NitroDocument) {
			for len(d.Bundle) < 9 {
				d.Bundle = append(d.Bundle, d.Bundle[1])
			}
		}), wire.Malformed},
		{"certificate that is none", edit(func(d *attesttest.NitroDocument) { d.Certificate = []byte("x") }), wire.Malformed},

		// Chain.
		{"a root that policy does not name", func(_ *testing.T, s *scene) {
			s.rules = attesttest.NewNitroVendor(now).Rules()
		}, wire.UnknownRoot},
		{"zero rules", func(_ *testing.T, s *scene) { s.rules = attest.Rules{} }, wire.UnknownRoot},
		{"bundle that begins with another root", edit(func(d *attesttest.NitroDocument) {
			d.Bundle = append([][]byte{selfSigned(t)}, d.Bundle...)
		}), wire.UnknownRoot},
		{"self-signed below the right root", edit(func(d *attesttest.NitroDocument) { d.Certificate = selfSigned(t) }), wire.BadChain},
		{"no intermediate", edit(func(d *attesttest.NitroDocument) { d.Bundle = d.Bundle[:1] }), wire.BadChain},
		{"intermediate that is no CA", certificate("instance", func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, 0 }), wire.BadChain},
		{"weaker digest in a certificate", certificate("enclave", func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA256 }), wire.BadChain},
		{"enclave of another instance", func(_ *testing.T, s *scene) {
			other := s.vendor.Attester(attesttest.MeasureNitro("image"))
			var bundle [][]byte
			other.Edit = func(d *attesttest.NitroDocument) { bundle = d.Bundle }
			if _, err := other.Attest(context.Background(), use); err != nil {
				panic(err)
			}
			s.device.Edit = func(d *attesttest.NitroDocument) { d.Bundle = bundle }
		}, wire.BadChain},

		// Signature.
		{"payload of another time", mangle(func(raw []byte) []byte {
			raw[bytes.Index(raw, []byte("i-test"))]++
			return raw
		}), wire.BadSignature},
		{"last bit of the signature", mangle(func(raw []byte) []byte { raw[len(raw)-1] ^= 1; return raw }), wire.BadSignature},

		// Time.
		{"enclave certificate past its end", func(_ *testing.T, s *scene) {
			s.rules.Nitro.MaxAge = 24 * time.Hour
			s.at = now.Add(3*time.Hour + time.Second)
		}, wire.Expired},
		{"enclave certificate before its time", func(_ *testing.T, s *scene) { s.at = now.Add(-time.Second) }, wire.Expired},
		{"instance certificate past its end", certificate("instance", func(c *x509.Certificate) { c.NotAfter = now }), wire.Expired},
		{"one second too old", func(_ *testing.T, s *scene) { s.at = now.Add(5*time.Minute + time.Second) }, wire.Expired},
		{"no age in policy", func(_ *testing.T, s *scene) { s.rules.Nitro.MaxAge = 0 }, wire.Expired},
		{"made in the future", edit(func(d *attesttest.NitroDocument) {
			d.Made = now.Add(time.Minute + wire.MaxClockSkew + time.Second)
		}), wire.Expired},

		// Debug and binding.
		{"debug", edit(func(d *attesttest.NitroDocument) { clear(d.PCRs[0]); clear(d.PCRs[1]); clear(d.PCRs[2]) }), wire.Debug},
		{"PCR 0 alone is zero", edit(func(d *attesttest.NitroDocument) { d.PCRs[0] = make([]byte, 48) }), wire.Debug},
		{"made for another use", edit(func(d *attesttest.NitroDocument) { d.UserData = make([]byte, 64) }), wire.BadNonce},
		{"without user data", edit(func(d *attesttest.NitroDocument) { d.UserData = nil }), wire.BadNonce},
		{"the use in the nonce instead", edit(func(d *attesttest.NitroDocument) { d.Nonce, d.UserData = d.UserData, nil }), wire.BadNonce},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene()
			tt.change(t, s)
			got, err := s.appraise(t)
			if !errors.Is(err, tt.want) || got.Appraised() {
				t.Errorf("err = %v, want reason %q", err, tt.want)
			}
		})
	}
}

// TestPermit: each permission of the rules admits the case that it names.
func TestPermit(t *testing.T) {
	tests := []struct {
		name   string
		change func(s *scene)
	}{
		{"debug", func(s *scene) {
			s.device.Edit = func(d *attesttest.NitroDocument) { d.PCRs[0] = make([]byte, 48) }
			s.rules.Debug = true
		}},
		{"oldest accepted", func(s *scene) { s.at = now.Add(5 * time.Minute) }},
		{"a module's clock that runs ahead", func(s *scene) {
			s.at = now
			s.device.Now = func() time.Time { return now.Add(wire.MaxClockSkew) }
		}},
		{"last second of the certificate", func(s *scene) {
			s.rules.Nitro.MaxAge = 3 * time.Hour
			s.at = now.Add(3 * time.Hour)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene()
			tt.change(s)
			if _, err := s.appraise(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// selfSigned returns a self-signed certificate.
func selfSigned(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mine"},
		NotBefore: now, NotAfter: now.Add(time.Hour), SignatureAlgorithm: x509.ECDSAWithSHA384,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
