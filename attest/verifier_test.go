package attest_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/internal/wire"
)

var (
	someData = attest.BindReportData(wire.LabelIssue, []byte("nonce"), []byte("key"))
	someTime = time.Date(2026, 11, 22, 9, 0, 0, 0, time.UTC)
)

func evidence(t *testing.T, device attest.Attester, data attest.ReportData) attest.Evidence {
	t.Helper()
	e, err := device.Attest(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestAppraise(t *testing.T) {
	vendor := attesttest.NewVendor()
	device := vendor.Chip().Attester(attesttest.Measure("scoring", "--model", "m.json"))
	result, err := attesttest.Verifier().Appraise(attest.Question{
		Evidence: evidence(t, device, someData), ReportData: someData, Rules: vendor.Rules(), At: someTime,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !result.Appraised() || result.Debug() || result.Dynamic() {
		t.Errorf("got OK %v, debug %v, dynamic %v", result.Appraised(), result.Debug(), result.Dynamic())
	}
	if err := attest.Match(attesttest.Measure("scoring", "--model", "m.json"), result.Measurement()); err != nil {
		t.Error(err)
	}
	if !result.AppraisedAt().Equal(someTime) {
		t.Errorf("got time %v, want %v", result.AppraisedAt(), someTime)
	}
	if got, want := result.ChipID(), vendor.Root().Hex()[:16]; got != want {
		t.Errorf("got chip %q, want %q", got, want)
	}
}

// question is a good question; each row changes one thing in it.
type question struct {
	attest.Question
	vendor   *attesttest.Vendor
	device   *attesttest.Device
	verifier *attest.Verifier
}

func TestAppraiseRefusals(t *testing.T) {
	soft := attest.Soft
	for _, c := range []struct {
		name   string
		fault  attesttest.Faults
		change func(*question)
		want   attest.Reason // "": accepted
	}{
		{"nothing changed", attesttest.Faults{}, func(*question) {}, ""},
		{"verifier of no platform", attesttest.Faults{}, func(q *question) { q.verifier = attest.NewVerifier() }, wire.NoPlatform},
		{"evidence of another platform", attesttest.Faults{}, func(q *question) { q.Evidence.Platform = attest.TPM }, wire.NoPlatform},
		{"evidence of no platform", attesttest.Faults{}, func(q *question) { q.Evidence.Platform = "" }, wire.NoPlatform},
		{"no rules", attesttest.Faults{}, func(q *question) { q.Rules = nil }, wire.NoPlatform},
		{"rules of another platform", attesttest.Faults{}, func(q *question) {
			q.Rules = map[attest.Platform]attest.Rules{attest.TPM: q.Rules[soft]}
		}, wire.NoPlatform},
		{"zero rules", attesttest.Faults{}, func(q *question) { q.Rules[soft] = attest.Rules{} }, wire.UnknownRoot},
		{"another vendor's rules", attesttest.Faults{}, func(q *question) { q.Rules = attesttest.NewVendor().Rules() }, wire.UnknownRoot},
		{"another vendor's evidence", attesttest.Faults{OtherRoot: true}, func(*question) {}, wire.UnknownRoot},
		{"no evidence", attesttest.Faults{}, func(q *question) { q.Evidence.Raw = nil }, wire.Malformed},
		{"truncated", attesttest.Faults{Truncated: true}, func(*question) {}, wire.Malformed},
		{"bad signature", attesttest.Faults{BadSignature: true}, func(*question) {}, wire.BadSignature},
		{"evidence bound to something else", attesttest.Faults{OtherReportData: true}, func(*question) {}, wire.BadNonce},
		{"question of another use", attesttest.Faults{}, func(q *question) {
			q.ReportData = attest.BindReportData(wire.LabelTrust, []byte("nonce"), []byte("key"))
		}, wire.BadNonce},
		{"question of another nonce", attesttest.Faults{}, func(q *question) {
			q.ReportData = attest.BindReportData(wire.LabelIssue, []byte("other"), []byte("key"))
		}, wire.BadNonce},
		{"question and evidence bound to nothing", attesttest.Faults{}, func(q *question) {
			q.ReportData = attest.ReportData{}
			q.Evidence = evidence(t, q.device, attest.ReportData{})
		}, wire.BadNonce},
		{"debug", attesttest.Faults{Debug: true}, func(*question) {}, wire.Debug},
		{"debug, allowed", attesttest.Faults{Debug: true}, func(q *question) {
			q.Rules[soft] = attest.Rules{Roots: q.Rules[soft].Roots, Debug: true}
		}, ""},
		{"debug allowed, but no root", attesttest.Faults{Debug: true}, func(q *question) {
			q.Rules[soft] = attest.Rules{Debug: true}
		}, wire.UnknownRoot},
		{"dynamic is for policy to judge", attesttest.Faults{Dynamic: true}, func(*question) {}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := question{vendor: attesttest.NewVendor(), verifier: attesttest.Verifier()}
			q.device = q.vendor.Chip().Attester(attesttest.Measure("scoring"))
			q.device.Faults = c.fault
			q.Question = attest.Question{
				Evidence: evidence(t, q.device, someData), ReportData: someData, Rules: q.vendor.Rules(), At: someTime,
			}
			c.change(&q)
			result, err := q.verifier.Appraise(q.Question)
			if c.want == "" {
				if err != nil || !result.Appraised() || result.Debug() != c.fault.Debug || result.Dynamic() != c.fault.Dynamic {
					t.Errorf("got OK %v, debug %v, dynamic %v, error %v", result.Appraised(), result.Debug(), result.Dynamic(), err)
				}
				return
			}
			if !errors.Is(err, c.want) || result.Appraised() {
				t.Errorf("got OK %v, %v, want %v", result.Appraised(), err, c.want)
			}
		})
	}
}

// liar is an appraiser that returns fixed claims, such as a measurement of a different platform,
// or report data of a wrong size.
type liar struct{ claims attest.Claims }

func (l liar) Genuine() closed.Appraiser { return closed.VouchFor(l) }

func (liar) Platform() attest.Platform { return attest.Soft }

func (l liar) Appraise([]byte, attest.Endorsements, attest.Rules, time.Time) (attest.Claims, error) {
	return l.claims, nil
}

func TestVerifierDoesNotBelieveAppraisers(t *testing.T) {
	short := sha256.Sum256(someData[:])
	m := attesttest.Measure("scoring")
	other := m
	other.Platform = attest.TPM
	for _, c := range []struct {
		name   string
		claims attest.Claims
		want   attest.Reason
	}{
		{"64 bytes", attest.Claims{Measurement: m, ReportData: someData[:]}, ""},
		{"their SHA-256", attest.Claims{Measurement: m, ReportData: short[:]}, ""},
		{"their first half", attest.Claims{Measurement: m, ReportData: someData[:32]}, wire.BadNonce},
		{"no report data", attest.Claims{Measurement: m}, wire.BadNonce},
		{"measurement of another platform", attest.Claims{Measurement: other, ReportData: someData[:]}, wire.NoPlatform},
		{"no measurement", attest.Claims{ReportData: someData[:]}, wire.NoPlatform},
	} {
		t.Run(c.name, func(t *testing.T) {
			result, err := attest.NewVerifier(liar{c.claims}).Appraise(attest.Question{
				Evidence: attest.Evidence{Platform: attest.Soft, Raw: []byte{1}}, ReportData: someData,
				Rules: map[attest.Platform]attest.Rules{attest.Soft: {}}, At: someTime,
			})
			if c.want == "" && (err != nil || !result.Appraised()) {
				t.Errorf("got %v, want it accepted", err)
			}
			if c.want != "" && (!errors.Is(err, c.want) || result.Appraised()) {
				t.Errorf("got OK %v, %v, want %v", result.Appraised(), err, c.want)
			}
		})
	}
}

// appraiseFunc is an appraiser that records the endorsements it is called with.
type appraiseFunc struct{ seen attest.Endorsements }

func (r *appraiseFunc) Genuine() closed.Appraiser { return closed.VouchFor(r) }

func (*appraiseFunc) Platform() attest.Platform { return attest.Soft }

func (r *appraiseFunc) Appraise(_ []byte, endorsed attest.Endorsements, _ attest.Rules, _ time.Time) (attest.Claims, error) {
	r.seen = endorsed
	return attest.Claims{}, wire.Malformed
}

// TestAppraiseEndorsements: endorsements in the question replace those that came with the
// evidence.
func TestAppraiseEndorsements(t *testing.T) {
	r := new(appraiseFunc)
	attest.NewVerifier(r).Appraise(attest.Question{
		Evidence:     attest.Evidence{Platform: attest.Soft, Raw: []byte{1}, Endorsed: attest.Endorsements{"vlek": {1}, "crl": {2}}},
		Endorsements: attest.Endorsements{"crl": {3}},
		ReportData:   someData, Rules: map[attest.Platform]attest.Rules{attest.Soft: {}}, At: someTime,
	})
	if want := (attest.Endorsements{"vlek": {1}, "crl": {3}}); !reflect.DeepEqual(r.seen, want) {
		t.Errorf("got %v, want %v", r.seen, want)
	}
}

func TestZeroResultIsNotOK(t *testing.T) {
	if (attest.Result{}).Appraised() {
		t.Error("the zero Result is OK")
	}
}

func TestBindSeparates(t *testing.T) {
	seen := map[attest.ReportData]string{}
	for name, data := range map[string]attest.ReportData{
		"a label":        attest.BindReportData(wire.LabelIssue, []byte("ab"), []byte("c")),
		"another label":  attest.BindReportData(wire.LabelTrust, []byte("ab"), []byte("c")),
		"another border": attest.BindReportData(wire.LabelIssue, []byte("a"), []byte("bc")),
		"one field":      attest.BindReportData(wire.LabelIssue, []byte("abc")),
		"an empty field": attest.BindReportData(wire.LabelIssue, []byte("ab"), []byte("c"), nil),
	} {
		if other, ok := seen[data]; ok {
			t.Errorf("%s and %s are bound to the same", name, other)
		}
		seen[data] = name
	}
}

// A verifier appraises evidence that a unit made about itself for one use.
func Example() {
	vendor := attesttest.NewVendor() // stands for a TEE's manufacturer
	device := vendor.Chip().Attester(attesttest.Measure("scoring"))

	data := attest.BindReportData(wire.LabelIssue, []byte("the verifier's nonce"), []byte("the unit's key"))
	evidence, err := device.Attest(context.Background(), data)
	if err != nil {
		fmt.Println(err)
		return
	}
	verifier := attest.NewVerifier(soft.Platform().Appraiser())
	result, err := verifier.Appraise(attest.Question{
		Evidence: evidence, ReportData: data, Rules: vendor.Rules(), At: someTime,
	})
	fmt.Println(result.Appraised(), err)

	_, err = verifier.Appraise(attest.Question{
		Evidence: evidence, ReportData: attest.BindReportData(wire.LabelIssue, []byte("a later nonce")), Rules: vendor.Rules(), At: someTime,
	})
	fmt.Println(errors.Is(err, wire.BadNonce))
	// Output:
	// true <nil>
	// true
}
