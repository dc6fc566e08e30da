package attest_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/internal/wire"
)

// forger wraps a genuine appraiser, and replaces the report data of every evidence by the report
// data that the question demands.
type forger struct {
	attest.Appraiser
	data attest.ReportData
}

func (f forger) Appraise(raw []byte, endorsed attest.Endorsements, rules attest.Rules, at time.Time) (attest.Claims, error) {
	claims, err := f.Appraiser.Appraise(raw, endorsed, rules, at)
	claims.ReportData = f.data[:]
	return claims, err
}

// pretender claims to be genuine, which only packages below attest can.
type pretender struct{ liar }

func (pretender) Genuine() closed.Appraiser { return closed.Appraiser{} }

// TestAppraisersAreClosed: neither a type that wraps an appraiser nor one that is not genuine can
// make a result from evidence for a different use.
func TestAppraisersAreClosed(t *testing.T) {
	vendor, other := attesttest.NewVendor(), attest.BindReportData(wire.LabelTrust)
	evidence, err := vendor.Chip().Attester(attesttest.Measure("scoring")).Attest(t.Context(), someData)
	if err != nil {
		t.Fatal(err)
	}
	claims := attest.Claims{Measurement: attesttest.Measure("scoring"), ReportData: other[:]}
	for name, c := range map[string]struct {
		appraiser attest.Appraiser
		data      attest.ReportData
		want      attest.Reason
	}{
		"itself":                             {soft.Platform().Appraiser(), someData, ""},
		"a wrapper that changes nothing":     {forger{soft.Platform().Appraiser(), someData}, someData, ""},
		"a wrapper that forges report data":  {forger{soft.Platform().Appraiser(), other}, other, wire.BadNonce},
		"a wrapper of a wrapper":             {forger{forger{soft.Platform().Appraiser(), other}, other}, other, wire.BadNonce},
		"one that nothing vouches for":       {pretender{liar{claims}}, other, wire.NoPlatform},
		"a wrapper of one without a genuine": {forger{pretender{liar{claims}}, other}, other, wire.NoPlatform},
	} {
		result, err := attest.NewVerifier(c.appraiser).Appraise(attest.Question{Evidence: evidence, ReportData: c.data, Rules: vendor.Rules(), At: someTime})
		if result.Appraised() != (c.want == "") || c.want != "" && !errors.Is(err, c.want) {
			t.Errorf("%s: got OK %v, %v, want %q", name, result.Appraised(), err, c.want)
		}
	}
}

// TestInspect: Inspect checks evidence like Appraise, except that it accepts evidence of any use.
func TestInspect(t *testing.T) {
	good := attest.Evidence{Platform: attest.Soft, Raw: []byte{1}, Devices: []attest.Evidence{gpu(2), gpu(3)}}
	type q = attest.Question
	for _, c := range []struct {
		name   string
		change func(tee, device *judge, q *q)
		want   attest.Reason
	}{
		{"all hold", nil, ""},
		{"no use at all", func(_, _ *judge, q *q) { q.ReportData = attest.ReportData{} }, ""},
		{"for another use", func(tee, d *judge, _ *q) {
			tee.claims.ReportData, d.claims.ReportData = make([]byte, 64), make([]byte, 64)
		}, ""},
		{"a device alone", func(_, _ *judge, q *q) { q.Evidence = gpu(2); q.Evidence.Devices = []attest.Evidence{gpu(3), gpu(4)} }, ""},
		{"the TEE does not hold", func(_, _ *judge, q *q) { q.Evidence.Raw = []byte{0xff} }, wire.BadSignature},
		{"the last device does not", func(_, _ *judge, q *q) { q.Evidence.Devices = []attest.Evidence{gpu(2), gpu(0xff)} }, wire.BadSignature},
		{"no rules for devices", func(_, _ *judge, q *q) { delete(q.Rules, attest.NvidiaGPU) }, wire.NoPlatform},
		{"debug", func(tee, _ *judge, _ *q) { tee.claims.Debug = true }, wire.Debug},
		{"a device in debug", func(_, d *judge, _ *q) { d.claims.Debug = true }, wire.Debug},
		{"one device twice", func(_, _ *judge, q *q) { q.Evidence.Devices = []attest.Evidence{gpu(2), gpu(2)} }, wire.WrongChip},
		{"one device twice, alone", func(_, _ *judge, q *q) { q.Evidence = gpu(2); q.Evidence.Devices = []attest.Evidence{gpu(2)} }, wire.WrongChip},
		{"a TEE as a device", func(_, _ *judge, q *q) { q.Evidence.Devices[1].Platform = attest.Soft }, wire.NoPlatform},
		{"lists that were had too long ago", func(_, _ *judge, q *q) {
			q.Evidence.Endorsed = attest.Endorsements{"crl": {1}}
			q.Rules[attest.Soft] = attest.Rules{CheckedWithin: 24 * time.Hour}
		}, wire.Expired},
	} {
		t.Run(c.name, func(t *testing.T) {
			tee, device := judge{platform: attest.Soft}, judge{platform: attest.NvidiaGPU}
			question := attest.Question{
				Evidence: good, ReportData: someData, Rules: map[attest.Platform]attest.Rules{attest.Soft: {}, attest.NvidiaGPU: {}}, At: someTime,
			}
			question.Evidence.Devices = slices.Clone(good.Devices)
			if c.change != nil {
				c.change(&tee, &device, &question)
			}
			got, err := attest.NewVerifier(tee, device).Inspect(question)
			if c.want == "" && (err != nil || len(got) != 3 || got[0].Chip != string(question.Evidence.Raw) || !bytes.Equal(question.Evidence.Devices[1].Raw, []byte(got[2].Chip))) {
				t.Errorf("got %v, %v, want the claims of all three", got, err)
			}
			if c.want != "" && (!errors.Is(err, c.want) || got != nil) {
				t.Errorf("got %v, %v, want %q", got, err, c.want)
			}
		})
	}
}
