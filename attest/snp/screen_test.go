package snp_test

import (
	"errors"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/snp"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestScreen: without any document of AMD's, a report is refused if its own fields violate the
// rules. A report of version 2, which does not state its generation, counts as Milan's.
func TestScreen(t *testing.T) {
	screen := func(t *testing.T, s *scene) error {
		t.Helper()
		if s.question.Evidence.Raw == nil {
			s.question.Evidence = s.evidence(t)
		}
		s.question.Endorsements, s.question.Evidence.Endorsed = nil, nil
		s.question.Rules = map[attest.Platform]attest.Rules{attest.SNP: s.rules}
		_, err := attest.NewVerifier(snp.Platform().Appraiser()).Screen(s.question)
		return err
	}
	for _, row := range []struct {
		name   string
		change func(t *testing.T, s *scene)
		want   attest.Reason
	}{
		{"good", func(*testing.T, *scene) {}, ""},
		{"version 2", func(_ *testing.T, s *scene) {
			s.device.Edit = func(r []byte) { r[0] = 2; clear(r[0x188:0x18b]) }
		}, ""},
		{"one byte less", func(t *testing.T, s *scene) {
			s.question.Evidence = s.evidence(t)
			s.question.Evidence.Raw = s.question.Evidence.Raw[:1183]
		}, wire.Malformed},
		{"generation without a row", func(_ *testing.T, s *scene) {
			s.rules.SNP.Generations = map[string]attest.SNPFloor{"Genoa": {}}
		}, wire.NoPlatform},
		{"firmware below its floor", func(_ *testing.T, s *scene) {
			least := firmware
			least.Microcode++
			s.rules.SNP.Generations = map[string]attest.SNPFloor{"Milan": {Reported: least}}
		}, wire.BadTCB},
		{"chip that is not listed", func(_ *testing.T, s *scene) {
			s.rules.SNP.Chips = attest.List{Values: [][]byte{make([]byte, 64)}}
		}, wire.NoPlatform},
		{"chip that is cut off", func(_ *testing.T, s *scene) { s.rules.SNP.CutChips = [][]byte{s.chip.ID()} }, wire.NoPlatform},
		{"launch key that is not listed", edit(0xe0, 1), wire.NotMeasured},
		{"shared cores", edit(0x0a, 0x03), wire.BadTCB},
		{"privilege level 1", edit(0x30, 1), wire.BadTCB},
		{"debug", edit(0x0a, 0x0a), wire.Debug},
		{"made for another use", edit(0x50, 0, 1, 2), wire.BadNonce},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newScene(t, "Milan", firmware)
			row.change(t, s)
			if err := screen(t, s); row.want == "" && err != nil || row.want != "" && !errors.Is(err, row.want) {
				t.Errorf("got %v, want reason %q", err, row.want)
			}
		})
	}
}

// FuzzScreen signs a report with one changed field. A report that Screen refuses without
// documents is also refused by Appraise with them, and always with a reason.
func FuzzScreen(f *testing.F) {
	vendor := attesttest.NewSNPVendor("Milan", now)
	chip := vendor.Chip(firmware)
	endorsed, rules := chip.Endorsements(), map[attest.Platform]attest.Rules{attest.SNP: vendor.Rules()}
	verifier := attest.NewVerifier(snp.Platform().Appraiser())
	for _, at := range []uint16{0, 0x0a, 0x30, 0x34, 0x48, 0x50, 0x90, 0xe0, 0x180, 0x188, 0x189, 0x1a0, 0x1e8, 0x1f8} {
		f.Add(at, byte(1))
		f.Add(at, byte(2))
		f.Add(at, byte(0xff))
	}
	f.Fuzz(func(t *testing.T, at uint16, value byte) {
		device := chip.Attester(attesttest.MeasureSNP("guest"))
		device.Edit = put(int(at)%0x2a0, value)
		evidence, err := device.Attest(t.Context(), use)
		if err != nil {
			t.Fatal(err)
		}
		q := attest.Question{Evidence: evidence, ReportData: use, At: now, Rules: rules}
		_, screened := verifier.Screen(q)
		q.Endorsements = endorsed
		_, appraised := verifier.Appraise(q)
		var refusal *attest.Refusal
		if screened != nil && (appraised == nil || !errors.As(screened, &refusal)) {
			t.Fatalf("byte %#x = %#x: screened %v, appraised %v", int(at)%0x2a0, value, screened, appraised)
		}
	})
}
