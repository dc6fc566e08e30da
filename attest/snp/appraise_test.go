package snp_test

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/internal/wire"
)

var (
	now      = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	firmware = attest.SNPTCB{Bootloader: 4, TEE: 1, SNP: 24, Microcode: 219}
	use      = attest.BindReportData(wire.LabelIssue, []byte("nonce"))
)

// scene has all inputs of an appraisal. A row of the refusal table changes the smallest part of a
// good one.
type scene struct {
	vendor   *attesttest.SNPVendor
	chip     *attesttest.SNPChip
	device   *attesttest.SNPDevice
	question attest.Question
	rules    attest.Rules
}

// newScene returns a guest on a Milan with good endorsements.
func newScene(t *testing.T, product string, tcb attest.SNPTCB) *scene {
	t.Helper()
	s := &scene{vendor: attesttest.NewSNPVendor(product, now)}
	s.rules = s.vendor.Rules()
	s.use(s.vendor.Chip(tcb))
	return s
}

// use moves the guest to a chip.
func (s *scene) use(c *attesttest.SNPChip) {
	s.chip = c
	s.device = c.Attester(attesttest.MeasureSNP("guest"))
	s.question = attest.Question{Endorsements: c.Endorsements(), ReportData: use, At: now}
}

func (s *scene) appraise(t *testing.T) (attest.Result, error) {
	t.Helper()
	if s.question.Evidence.Raw == nil {
		s.question.Evidence = s.evidence(t)
	}
	s.question.Rules = map[attest.Platform]attest.Rules{attest.SNP: s.rules}
	return attesttest.Appraise(t, attest.NewVerifier(snp.Platform().Appraiser()), s.question)
}

func (s *scene) evidence(t *testing.T) attest.Evidence {
	t.Helper()
	evidence, err := s.device.Attest(context.Background(), use)
	if err != nil {
		t.Fatal(err)
	}
	return evidence
}

// put returns an edit that sets bytes of a report at an offset.
func put(at int, bytes ...byte) func([]byte) {
	return func(report []byte) { copy(report[at:], bytes) }
}

func TestAppraise(t *testing.T) {
	turin := attest.SNPTCB{FMC: 1, Bootloader: 2, TEE: 1, SNP: 4, Microcode: 80}
	tests := []struct {
		name    string
		product string
		tcb     attest.SNPTCB
		cloud   bool
	}{
		{"Milan, VCEK", "Milan", firmware, false},
		{"Genoa, VCEK", "Genoa", firmware, false},
		{"Turin, VCEK of 8-byte chip id", "Turin", turin, false},
		{"Milan, VLEK", "Milan", firmware, true},
		{"Turin, VLEK", "Turin", turin, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, tt.product, tt.tcb)
			want := s.chip.ID()
			if tt.cloud {
				s.use(s.vendor.CloudChip(tt.tcb, "cloud.example"))
				s.rules.SNP.HiddenChips = true
			}
			got, err := s.appraise(t)
			if err != nil {
				t.Fatal(err)
			}
			if err := attest.Match(attesttest.MeasureSNP("guest"), got.Measurement()); err != nil {
				t.Error(err)
			}
			if tt.cloud && got.ChipID() != "vlek:cloud.example" {
				t.Errorf("chip = %q, want vlek:cloud.example", got.ChipID())
			}
			if !tt.cloud && !strings.HasPrefix(attestHex(want), got.ChipID()) {
				t.Errorf("chip = %q, want a prefix of %q", got.ChipID(), attestHex(want))
			}
		})
	}
}

func TestVersions(t *testing.T) {
	tests := []struct {
		name string
		edit func(report []byte)
	}{
		{"2, without CPUID", func(r []byte) { r[0] = 2; clear(r[0x188:0x18b]) }},
		{"4", put(0, 4)},
		{"5, with mitigation vectors", func(r []byte) { r[0] = 5; r[0x1f8], r[0x200] = 3, 3 }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, "Milan", firmware)
			s.device.Edit = tt.edit
			if _, err := s.appraise(t); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRefuse(t *testing.T) {
	tests := []struct {
		name   string
		change func(t *testing.T, s *scene)
		want   attest.Reason
	}{
		// Form.
		{"one byte less", func(t *testing.T, s *scene) {
			s.question.Evidence = s.evidence(t)
			s.question.Evidence.Raw = s.question.Evidence.Raw[:1183]
		}, wire.Malformed},
		{"one byte more", func(t *testing.T, s *scene) {
			s.question.Evidence = s.evidence(t)
			s.question.Evidence.Raw = append(s.question.Evidence.Raw, 0)
		}, wire.Malformed},
		{"version 1", edit(0, 1), wire.Malformed},
		{"version 6", edit(0, 6), wire.Malformed},
		{"signature algorithm 2", edit(0x34, 2), wire.Malformed},
		{"guest policy without its constant bit", edit(0x0a, 0), wire.Malformed},
		{"unsigned report", edit(0x48, 7<<2), wire.Malformed},
		{"unknown signing key", edit(0x48, 3<<2), wire.Malformed},
		{"report that the host asked for", func(_ *testing.T, s *scene) {
			s.rules.SNP.VMPL = 0xffffffff
			s.device.Edit = put(0x30, 0xff, 0xff, 0xff, 0xff)
		}, wire.Malformed},
		{"reserved bytes after the signer", edit(0x4c, 1), wire.Malformed},
		{"reserved bytes after the CPUID", edit(0x18b, 1), wire.Malformed},
		{"CPUID in version 2", edit(0, 2), wire.Malformed},
		{"reserved byte of the current version", edit(0x1eb, 1), wire.Malformed},
		{"reserved byte of the committed version", edit(0x1ef, 1), wire.Malformed},
		{"mitigation vectors in version 3", edit(0x1f8, 1), wire.Malformed},
		{"reserved bytes before the signature", edit(0x29f, 1), wire.Malformed},
		{"reserved bytes after the signature", flip(0x330), wire.Malformed},
		{"last byte", flip(0x49f), wire.Malformed},
		{"CPU stepping beyond its four bits", edit(0x18a, 0x11), wire.Malformed},
		{"CPU of another family", edit(0x188, 0x17), wire.NoPlatform},
		{"CPU of a later generation, Venice", edit(0x188, 0x1a, 0x50), wire.NoPlatform},

		// Chain.
		{"without vcek", without("vcek"), wire.BadChain},
		{"without ask_ark", without("ask_ark"), wire.BadChain},
		{"vcek that is no certificate", replace("vcek", []byte("x")), wire.Malformed},
		{"ask_ark that is no certificate", replace("ask_ark", []byte("x")), wire.Malformed},
		{"bytes after the ARK", func(t *testing.T, s *scene) {
			s.question.Endorsements["ask_ark"] = append(s.question.Endorsements["ask_ark"], "more"...)
		}, wire.Malformed},
		{"a root that policy does not name", func(t *testing.T, s *scene) {
			s.rules.Roots = []attest.Digest{attesttest.NewSNPVendor("Milan", now).Root()}
		}, wire.UnknownRoot},
		{"no roots", func(t *testing.T, s *scene) { s.rules.Roots = nil }, wire.UnknownRoot},
		{"another vendor's ASK under the names of this", func(t *testing.T, s *scene) {
			other := attesttest.NewSNPVendor("Milan", now).Chip(firmware).Endorsements()
			s.question.Endorsements["vcek"] = other["vcek"]
		}, wire.BadChain},
		{"VCEK in the name of a VLEK", certificate("SEV-VCEK", func(c *x509.Certificate) { c.Subject.CommonName = "SEV-VLEK" }), wire.BadChain},
		{"ASK of another name", certificate("SEV-Milan", func(c *x509.Certificate) { c.Subject.CommonName = "SEV-Genoa" }), wire.BadChain},
		{"ASK that is no CA", certificate("SEV-Milan", func(c *x509.Certificate) { c.IsCA, c.KeyUsage, c.MaxPathLenZero = false, 0, false }), wire.BadChain},
		{"ASK of the right key under another name", func(_ *testing.T, s *scene) {
			s.vendor.Edit = func(c *x509.Certificate) { c.Subject.Organization = []string{"another"} }
			s.use(s.chip)
		}, wire.BadChain},
		{"unknown critical extension", certificate("SEV-VCEK", func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}})
		}), wire.BadChain},
		{"other signature algorithm", certificate("SEV-VCEK", func(c *x509.Certificate) { c.SignatureAlgorithm = x509.SHA384WithRSA }), wire.BadChain},
		{"product of another generation", extension(2, append([]byte{asn1.TagIA5String, 5}, "Genoa"...)), wire.BadChain},
		{"no product", extension(2, nil), wire.BadChain},
		{"no chip id", extension(4, nil), wire.BadChain},
		{"short chip id", extension(4, make([]byte, 63)), wire.BadChain},
		{"chip under a VLEK's role", func(t *testing.T, s *scene) {
			s.question.Endorsements["vlek"] = s.question.Endorsements["vcek"]
			s.device.Edit = put(0x48, 1<<2)
		}, wire.BadChain},
		{"VLEK without a provider", func(t *testing.T, s *scene) {
			s.vendor.Edit = dropExtension("SEV-VLEK", 5, nil)
			s.use(s.vendor.CloudChip(firmware, "cloud.example"))
		}, wire.BadChain},

		// The chip's certificate against the report.
		{"another chip's VCEK", func(t *testing.T, s *scene) {
			s.question.Endorsements = s.vendor.Chip(firmware).Endorsements()
		}, wire.WrongChip},
		{"hidden chip id", func(t *testing.T, s *scene) {
			s.device.Edit = func(r []byte) { r[0x48] = 2; clear(r[0x1a0:0x1e0]) }
		}, wire.WrongChip},
		{"VCEK of other firmware", edit(0x187, firmware.Microcode-1), wire.WrongChip},
		{"CPU of another generation", edit(0x189, 0x11), wire.WrongChip},

		// Signature.
		{"signature over other data", flip(0x50), wire.BadSignature},
		{"signature with another R", flip(0x2a0), wire.BadSignature},
		{"signature with another S", flip(0x2e8), wire.BadSignature},
		{"signature with an oversized R", flip(0x2e7), wire.BadSignature},

		// Time and revocation.
		{"VCEK one second past its end", certificate("SEV-VCEK", func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }), wire.Expired},
		{"VCEK one second before its time", certificate("SEV-VCEK", func(c *x509.Certificate) { c.NotBefore = now.Add(time.Second) }), wire.Expired},
		{"ARK one second past its end", func(_ *testing.T, s *scene) {
			end := now.AddDate(7, 0, 0)
			s.vendor.Edit = func(c *x509.Certificate) { c.NotAfter = end.AddDate(1, 0, 0) }
			s.vendor.ListUntil = end.Add(time.Hour)
			s.use(s.vendor.Chip(firmware))
			s.question.At = end.Add(time.Second)
		}, wire.Expired},
		{"ASK past its end", certificate("SEV-Milan", func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }), wire.Expired},
		{"list one second past its end", func(t *testing.T, s *scene) { s.question.At = s.vendor.ListUntil.Add(time.Second) }, wire.Expired},
		{"list issued more than two minutes later", func(t *testing.T, s *scene) { s.question.At = s.vendor.ListFrom.Add(-2*time.Minute - time.Second) }, wire.Expired},
		{"list past its end, though it need not be there", func(t *testing.T, s *scene) {
			s.rules.CRL = attest.CRLIfPresent
			s.question.At = s.vendor.ListUntil.Add(time.Second)
		}, wire.Expired},
		{"no list", without("crl"), wire.CRLMissing},
		{"empty list", replace("crl", []byte{}), wire.Malformed},
		{"list of another vendor", func(t *testing.T, s *scene) {
			s.question.Endorsements["crl"] = attesttest.NewSNPVendor("Milan", now).Chip(firmware).Endorsements()["crl"]
		}, wire.BadSignature},
		{"list of another generation", func(t *testing.T, s *scene) {
			s.question.Endorsements["crl"] = attesttest.NewSNPVendor("Genoa", now).Chip(firmware).Endorsements()["crl"]
		}, wire.BadSignature},
		{"list of the ARK's key under another name", func(_ *testing.T, s *scene) {
			s.vendor.ListEdit = func(l *x509.RevocationList) { l.Issuer = pkix.Name{CommonName: "ARK-Genoa"} }
			s.use(s.chip)
		}, wire.BadSignature},
		{"list with another signature algorithm", func(_ *testing.T, s *scene) {
			s.vendor.ListEdit = func(l *x509.RevocationList) { l.SignatureAlgorithm = x509.SHA384WithRSA }
			s.use(s.chip)
		}, wire.BadSignature},
		{"list with a critical extension", func(t *testing.T, s *scene) {
			s.vendor.ListEdit = func(l *x509.RevocationList) {
				l.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 28}, Critical: true, Value: []byte{0x30, 0}}}
			}
			s.use(s.chip)
		}, wire.Malformed},
		{"revoked VCEK", func(t *testing.T, s *scene) { s.vendor.Revoke(s.chip.Serial()); s.use(s.chip) }, wire.Revoked},
		{"revoked VLEK", func(t *testing.T, s *scene) {
			s.use(s.vendor.CloudChip(firmware, "cloud.example"))
			s.vendor.Revoke(s.chip.Serial())
			s.use(s.chip)
		}, wire.Revoked},
		{"revoked ASK", func(t *testing.T, s *scene) { s.vendor.Revoke(two); s.use(s.chip) }, wire.Revoked},
		{"revoked, though the list need not be there", func(t *testing.T, s *scene) {
			s.rules.CRL = attest.CRLIfPresent
			s.vendor.Revoke(s.chip.Serial())
			s.use(s.chip)
		}, wire.Revoked},

		// Policy.
		{"no rules but the root", func(t *testing.T, s *scene) { s.rules.SNP = attest.SNPRules{} }, wire.NoPlatform},
		{"generation without a row", func(t *testing.T, s *scene) {
			s.rules.SNP.Generations = map[string]attest.SNPFloor{"Genoa": {}}
		}, wire.NoPlatform},
		{"chip that is not listed", func(t *testing.T, s *scene) {
			s.rules.SNP.Chips = attest.List{Values: [][]byte{make([]byte, 64)}}
		}, wire.NoPlatform},
		{"no chips", func(t *testing.T, s *scene) { s.rules.SNP.Chips = attest.List{} }, wire.NoPlatform},
		{"chip that is cut off", func(t *testing.T, s *scene) { s.rules.SNP.CutChips = [][]byte{s.chip.ID()} }, wire.NoPlatform},
		{"launch key that is not listed", edit(0xe0, 1), wire.NotMeasured},
		{"shared cores", edit(0x0a, 0x03), wire.BadTCB},
		{"migration", edit(0x0a, 0x06), wire.BadTCB},
		{"debug", edit(0x0a, 0x0a), wire.Debug},
		{"privilege level 1", edit(0x30, 1), wire.BadTCB},
		{"firmware that can be rolled back", edit(0x3f, firmware.Microcode+1), wire.BadTCB},
		{"firmware version that can be rolled back", edit(0x1e8, 1), wire.BadTCB},

		// Binding.
		{"made for another use", edit(0x50, 0, 1, 2), wire.BadNonce},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, "Milan", firmware)
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
		change func(t *testing.T, s *scene)
		permit func(s *scene)
	}{
		{"no list", without("crl"), func(s *scene) { s.rules.CRL = attest.CRLIfPresent }},
		{"listed chip", nil, func(s *scene) { s.rules.SNP.Chips = attest.List{Values: [][]byte{s.chip.ID()}} }},
		{"launch key", edit(0xe0, 1), func(s *scene) {
			s.rules.SNP.IDKeys.Values = append(s.rules.SNP.IDKeys.Values, append([]byte{1}, make([]byte, 47)...))
		}},
		{"shared cores", edit(0x0a, 0x03), func(s *scene) { s.rules.SNP.SMT = true }},
		{"migration", edit(0x0a, 0x06), func(s *scene) { s.rules.SNP.Migration = true }},
		{"debug", edit(0x0a, 0x0a), func(s *scene) { s.rules.Debug = true }},
		{"privilege level", edit(0x30, 2), func(s *scene) { s.rules.SNP.VMPL = 2 }},
		{"firmware that can be rolled back", edit(0x3f, firmware.Microcode+1), func(s *scene) { s.rules.SNP.Provisional = true }},
		{"floors that are met exactly", nil, func(s *scene) {
			s.rules.SNP.Generations["Milan"] = attest.SNPFloor{Committed: firmware, Reported: firmware, Launch: firmware}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, "Milan", firmware)
			if tt.change != nil {
				tt.change(t, s)
			}
			tt.permit(s)
			if _, err := s.appraise(t); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestFloors raises each component of each floor by one. The report is refused with that
// component's rule.
func TestFloors(t *testing.T) {
	tcb := attest.SNPTCB{FMC: 1, Bootloader: 2, TEE: 3, SNP: 4, Microcode: 5}
	floors := map[string]func(f *attest.SNPFloor) *attest.SNPTCB{
		"committed": func(f *attest.SNPFloor) *attest.SNPTCB { return &f.Committed },
		"reported":  func(f *attest.SNPFloor) *attest.SNPTCB { return &f.Reported },
		"launch":    func(f *attest.SNPFloor) *attest.SNPTCB { return &f.Launch },
	}
	components := map[string]func(v *attest.SNPTCB) *uint8{
		"fmc":        func(v *attest.SNPTCB) *uint8 { return &v.FMC },
		"bootloader": func(v *attest.SNPTCB) *uint8 { return &v.Bootloader },
		"tee":        func(v *attest.SNPTCB) *uint8 { return &v.TEE },
		"snp":        func(v *attest.SNPTCB) *uint8 { return &v.SNP },
		"microcode":  func(v *attest.SNPTCB) *uint8 { return &v.Microcode },
	}
	s := newScene(t, "Turin", tcb)
	for which, of := range floors {
		for name, component := range components {
			floor := attest.SNPFloor{Committed: tcb, Reported: tcb, Launch: tcb}
			*component(of(&floor))++
			s.rules.SNP.Generations = map[string]attest.SNPFloor{"Turin": floor}
			_, err := s.appraise(t)
			var refusal *attest.Refusal
			if !errors.As(err, &refusal) || refusal.Reason != wire.BadTCB || refusal.Rule != "snp: "+which+" "+name {
				t.Errorf("%s %s below its floor: err = %v", which, name, err)
			}
		}
	}
}

// TestMemory: cached results for a chip do not replace checks of time, rules and endorsements.
func TestMemory(t *testing.T) {
	s := newScene(t, "Milan", firmware)
	appraiser := snp.Platform().Appraiser()
	raw := s.evidence(t).Raw
	endorsed := s.question.Endorsements
	if _, err := appraiser.Appraise(raw, endorsed, s.rules, now); err != nil {
		t.Fatal(err)
	}
	other := s.vendor.Chip(firmware)
	stranger := s.rules
	stranger.Roots = []attest.Digest{{1}}
	s.vendor.Revoke(s.chip.Serial())
	with := func(role string, content []byte) attest.Endorsements {
		changed := maps.Clone(endorsed)
		changed[role] = content
		return changed
	}
	unlisted := maps.Clone(endorsed)
	delete(unlisted, "crl")
	lax := s.rules
	lax.CRL = attest.CRLIfPresent
	tests := []struct {
		name     string
		endorsed attest.Endorsements
		rules    attest.Rules
		at       time.Time
		want     attest.Reason
	}{
		{"later", endorsed, s.rules, s.vendor.ListUntil.Add(time.Second), wire.Expired},
		{"other roots", endorsed, stranger, now, wire.UnknownRoot},
		{"newer list", with("crl", s.chip.Endorsements()["crl"]), s.rules, now, wire.Revoked},
		{"no list", unlisted, s.rules, now, wire.CRLMissing},
		{"empty list after none", with("crl", []byte{}), lax, now, wire.Malformed},
		{"another chip's VCEK", with("vcek", other.Endorsements()["vcek"]), s.rules, now, wire.WrongChip},
		{"another ASK and ARK", with("ask_ark", []byte("x")), s.rules, now, wire.Malformed},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := appraiser.Appraise(raw, tt.endorsed, tt.rules, tt.at); !errors.Is(err, tt.want) {
				t.Errorf("err = %v, want reason %q", err, tt.want)
			}
		})
	}
}

// TestIssued: a list issued up to two minutes ahead counts, and the result has its time of issue.
func TestIssued(t *testing.T) {
	s := newScene(t, "Milan", firmware)
	s.question.At = s.vendor.ListFrom.Add(-2 * time.Minute)
	if r, err := s.appraise(t); err != nil || !r.Issued().Equal(s.vendor.ListFrom) {
		t.Errorf("got %v, %v, want %v", r.Issued(), err, s.vendor.ListFrom)
	}
}
