package attest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/internal/closed"
	"github.com/cohort-tee/cohort/internal/wire"
)

// composed is evidence of a TEE and two devices, in its one encoding.
const (
	gpuType  = `"application/vnd.cohort.nvidia-gpu-evidence"`
	composed = `{"0.cert_chain":[` + endorsement + `,"AQ"],"0.evidence":[` + gpuType + `,"Ag"],"1.evidence":[` + gpuType + `,"Aw"],` +
		`"__cmwc_t":"urn:cohort:composite-evidence","evidence":[` + mediaType + `,"AA"],"vcek":[` + endorsement + `,"AQ"]}`
)

func gpu(raw ...byte) attest.Evidence {
	return attest.Evidence{Platform: attest.NvidiaGPU, Raw: raw}
}

func TestCompositeText(t *testing.T) {
	first := gpu(2)
	first.Endorsed = attest.Endorsements{"cert_chain": {1}}
	want := attest.Evidence{
		Platform: attest.Soft, Raw: []byte{0}, Endorsed: attest.Endorsements{"vcek": {1}}, Devices: []attest.Evidence{first, gpu(3)},
	}
	text, err := json.Marshal(want)
	if err != nil || string(text) != composed {
		t.Errorf("got %s, %v, want %s", text, err, composed)
	}
	var got attest.Evidence
	if err := got.UnmarshalJSON([]byte(composed)); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

// TestCompositeRefusals: each row changes one thing in a good composite, and it is refused.
func TestCompositeRefusals(t *testing.T) {
	tee := `["application/vnd.cohort.soft-evidence","Aw"]`
	for _, c := range []struct {
		name, old, new string
		want           attest.Reason
	}{
		{"the type of a collection without devices", "composite-evidence", "endorsed-evidence", wire.Malformed},
		{"no TEE", `,"evidence":[` + mediaType + `,"AA"]`, "", wire.Malformed},
		{"a device in the TEE's place and a TEE in a device's", `"0.evidence":[` + gpuType, `"0.evidence":[` + mediaType, wire.NoPlatform},
		{"a device of an unknown kind", `"1.evidence":[` + gpuType, `"1.evidence":["application/eat+jwt"`, wire.NoPlatform},
		{"a number left out", `"1.evidence"`, `"2.evidence"`, wire.Malformed},
		{"a number with a zero", `"1.evidence"`, `"01.evidence"`, wire.Malformed},
		{"an endorsement of no device", `"0.cert_chain"`, `"2.cert_chain"`, wire.Malformed},
		{"an endorsement without a role", `"0.cert_chain"`, `"0."`, wire.Malformed},
		{"a role that means something else", `"0.cert_chain"`, `"0.__cmwc_t"`, wire.Malformed},
		{"a collection in a device's place", `"1.evidence":[` + gpuType + `,"Aw"]`, `"1.evidence":{"__cmwc_t":"urn:cohort:endorsed-evidence","evidence":` + tee + `}`, wire.Malformed},
		{"devices of a device", `"1.evidence"`, `"0.0.evidence"`, wire.Malformed},
		{"a part of no name", `"vcek"`, `"9"`, wire.Malformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			var e attest.Evidence
			err := e.UnmarshalJSON([]byte(strings.Replace(composed, c.old, c.new, 1)))
			if !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestCompositeOfWhat(t *testing.T) {
	tee := attest.Evidence{Platform: attest.Soft, Raw: []byte{0}}
	nested := gpu(1)
	nested.Devices = []attest.Evidence{gpu(2)}
	for _, c := range []struct {
		name    string
		devices []attest.Evidence
		want    attest.Reason
	}{
		{"a TEE as a device", []attest.Evidence{tee}, wire.NoPlatform},
		{"a device with devices", []attest.Evidence{nested}, wire.Malformed},
		{"seventeen", make([]attest.Evidence, 17), wire.Malformed},
	} {
		e := tee
		e.Devices = c.devices
		if _, err := e.MarshalJSON(); !errors.Is(err, c.want) {
			t.Errorf("%s: written: got %v, want %v", c.name, err, c.want)
		}
		if _, err := beside(t, e, nil); !errors.Is(err, c.want) {
			t.Errorf("%s: appraised: got %v, want %v", c.name, err, c.want)
		}
	}
	sixteen := tee
	for i := range byte(attest.MaxDevices) {
		sixteen.Devices = append(sixteen.Devices, gpu(i+1))
	}
	text, err := sixteen.MarshalJSON()
	var again attest.Evidence
	if err != nil || again.UnmarshalJSON(text) != nil || !reflect.DeepEqual(again, sixteen) {
		t.Errorf("sixteen devices: got %v, %v", again, err)
	}
}

// TestCompositeOfThousands: reading ends with the first device too many, however many follow. Each
// device costs a pass over all members, and allocations.
func TestCompositeOfThousands(t *testing.T) {
	allocations := func(skipped int) float64 {
		var text strings.Builder
		text.WriteString("{")
		for i := range 7600 {
			if i > attest.MaxDevices {
				i += skipped
			}
			fmt.Fprintf(&text, `"%d.evidence":[%s,"Aw"],`, i, gpuType)
		}
		text.WriteString(`"__cmwc_t":"urn:cohort:composite-evidence","evidence":[` + mediaType + `,"AA"]}`)
		return testing.AllocsPerRun(1, func() {
			if err := new(attest.Evidence).UnmarshalJSON([]byte(text.String())); !errors.Is(err, wire.Malformed) {
				t.Errorf("got %v, want %v", err, wire.Malformed)
			}
		})
	}
	if seventeen, all := allocations(1), allocations(0); all > seventeen+100 {
		t.Errorf("got %v allocations for 7,600 devices, want the %v for 17 of them", all, seventeen)
	}
}

// judge is an appraiser that refuses evidence which begins with 0xff. It accepts any other
// evidence, as of the chip that the bytes name.
type judge struct {
	platform attest.Platform
	claims   attest.Claims
}

func (j judge) Genuine() closed.Appraiser { return closed.VouchFor(j) }

func (j judge) Platform() attest.Platform { return j.platform }

func (j judge) Appraise(raw []byte, _ attest.Endorsements, _ attest.Rules, _ time.Time) (attest.Claims, error) {
	if raw[0] == 0xff {
		return attest.Claims{}, wire.BadSignature
	}
	c := j.claims
	c.Measurement.Platform, c.Chip = j.platform, string(raw)
	if c.ReportData == nil {
		c.ReportData = someData[:]
	}
	return c, nil
}

// beside appraises evidence of a TEE with devices, after change.
func beside(t *testing.T, e attest.Evidence, change func(tee, device *judge, q *attest.Question)) (attest.Result, error) {
	t.Helper()
	tee, device := judge{platform: attest.Soft}, judge{platform: attest.NvidiaGPU}
	q := attest.Question{
		Evidence: e, ReportData: someData, Rules: map[attest.Platform]attest.Rules{attest.Soft: {}, attest.NvidiaGPU: {}}, At: someTime,
	}
	if change != nil {
		change(&tee, &device, &q)
	}
	return attest.NewVerifier(tee, device).Appraise(q)
}

// TestAppraiseComposite: every part must be valid by itself and for this use.
func TestAppraiseComposite(t *testing.T) {
	type (
		j = judge
		q = attest.Question
	)
	good := attest.Evidence{Platform: attest.Soft, Raw: []byte{1}, Devices: []attest.Evidence{gpu(2), gpu(3)}}
	for _, c := range []struct {
		name   string
		change func(tee, device *j, q *q)
		want   attest.Reason
	}{
		{"all hold", nil, ""},
		{"the TEE does not", func(_, _ *j, q *q) { q.Evidence.Raw = []byte{0xff} }, wire.BadSignature},
		{"the last device does not", func(_, _ *j, q *q) { q.Evidence.Devices = []attest.Evidence{gpu(2), gpu(0xff)} }, wire.BadSignature},
		{"devices for another use", func(_, d *j, _ *q) { d.claims.ReportData = make([]byte, 64) }, wire.BadNonce},
		{"devices for half of the use", func(_, d *j, _ *q) { d.claims.ReportData = someData[:32] }, wire.BadNonce},
		{"the TEE for another use", func(tee, _ *j, _ *q) { tee.claims.ReportData = make([]byte, 64) }, wire.BadNonce},
		{"no rules for devices", func(_, _ *j, q *q) { delete(q.Rules, attest.NvidiaGPU) }, wire.NoPlatform},
		{"no rules for the TEE", func(_, _ *j, q *q) { delete(q.Rules, attest.Soft) }, wire.NoPlatform},
		{"a device in debug", func(_, d *j, _ *q) { d.claims.Debug = true }, wire.Debug},
		{"a device in debug, allowed for the TEE alone", func(_, d *j, q *q) {
			d.claims.Debug = true
			q.Rules[attest.Soft] = attest.Rules{Debug: true}
		}, wire.Debug},
		{"one device twice", func(_, _ *j, q *q) { q.Evidence.Devices = []attest.Evidence{gpu(2), gpu(2)} }, wire.WrongChip},
		{"a device alone", func(_, _ *j, q *q) { q.Evidence = gpu(2) }, wire.NoPlatform},
		{"a device before a device", func(_, _ *j, q *q) { q.Evidence.Platform = attest.NvidiaGPU }, wire.NoPlatform},
	} {
		t.Run(c.name, func(t *testing.T) {
			result, err := beside(t, good, c.change)
			if c.want == "" && (err != nil || len(result.Devices()) != 2) {
				t.Errorf("got %d devices, %v, want both", len(result.Devices()), err)
			}
			if c.want != "" && (!errors.Is(err, c.want) || result.Appraised()) {
				t.Errorf("got OK %v, %v, want %v", result.Appraised(), err, c.want)
			}
		})
	}
}

// TestAppraiseDevices: devices are appraised without a TEE, each for the use of the question, and
// each chip only once. A TEE is refused as a device.
func TestAppraiseDevices(t *testing.T) {
	v := attest.NewVerifier(judge{platform: attest.Soft}, judge{platform: attest.NvidiaGPU})
	two := gpu(2)
	two.Devices = []attest.Evidence{gpu(3)}
	for _, c := range []struct {
		name   string
		change func(*attest.Question)
		want   attest.Reason
	}{
		{"both hold", func(*attest.Question) {}, ""},
		{"the first does not", func(q *attest.Question) { q.Evidence.Raw = []byte{0xff} }, wire.BadSignature},
		{"the second does not", func(q *attest.Question) { q.Evidence.Devices = []attest.Evidence{gpu(0xff)} }, wire.BadSignature},
		{"one twice", func(q *attest.Question) { q.Evidence.Devices = []attest.Evidence{gpu(2)} }, wire.WrongChip},
		{"for another use", func(q *attest.Question) { q.ReportData[0]++ }, wire.BadNonce},
		{"a TEE", func(q *attest.Question) { q.Evidence.Platform = attest.Soft }, wire.NoPlatform},
	} {
		q := attest.Question{Evidence: two, ReportData: someData, Rules: map[attest.Platform]attest.Rules{attest.Soft: {}, attest.NvidiaGPU: {}}, At: someTime}
		c.change(&q)
		devices, err := v.AppraiseDevices(q)
		if c.want == "" && (err != nil || len(devices) != 2 || devices[0].Chip != "\x02" || devices[1].Chip != "\x03") {
			t.Errorf("%s: got %+v, %v, want both chips", c.name, devices, err)
		}
		if c.want != "" && (!errors.Is(err, c.want) || devices != nil) {
			t.Errorf("%s: got %+v, %v, want %q", c.name, devices, err, c.want)
		}
	}
}

// TestResultOfDevices: the result contains the claims of each device.
func TestResultOfDevices(t *testing.T) {
	result, err := beside(t, attest.Evidence{Platform: attest.Soft, Raw: []byte{1}, Devices: []attest.Evidence{gpu(2)}}, func(tee, device *judge, q *attest.Question) {
		tee.claims.NotVerified, device.claims.NotVerified, device.claims.Debug = []string{"a"}, []string{"b", "c"}, true
		q.Rules[attest.NvidiaGPU] = attest.Rules{Debug: true}
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []attest.Device{{Platform: attest.NvidiaGPU, Chip: "\x02", NotVerified: []string{"b", "c"}, Debug: true}}
	if got := result.Devices(); !reflect.DeepEqual(got, want) {
		t.Errorf("got devices %+v, want %+v", got, want)
	}
	if !result.Debug() || !reflect.DeepEqual(result.NotVerified(), []string{"a"}) || result.ChipID() != "\x01" {
		t.Errorf("got debug %v, unjudged %q, chip %q", result.Debug(), result.NotVerified(), result.ChipID())
	}
}

// asked is an attester that records the report data it is called with, and returns fixed
// evidence.
type asked struct {
	gives attest.Evidence
	err   error
	data  attest.ReportData
}

func (a *asked) Attest(_ context.Context, data attest.ReportData) (attest.Evidence, error) {
	a.data = data
	return a.gives, a.err
}

// challenged is an attester whose evidence contains the credential.
type challenged struct{ asked }

func (c *challenged) TPMKeys() attest.TPMKeys {
	return attest.TPMKeys{Device: []byte("ek")}
}

func (c *challenged) AttestFor(_ context.Context, data attest.ReportData, credential []byte) (attest.Evidence, error) {
	c.data = data
	return attest.Evidence{Platform: attest.TPM, Raw: credential}, nil
}

func TestWithDevices(t *testing.T) {
	tee, one, two := &asked{gives: attest.Evidence{Platform: attest.SNP, Raw: []byte{1}}}, &asked{gives: gpu(2)}, &asked{gives: gpu(3)}
	a := attest.WithDevices(tee, one, two)
	got, err := a.Attest(context.Background(), someData)
	want := attest.Evidence{Platform: attest.SNP, Raw: []byte{1}, Devices: []attest.Evidence{gpu(2), gpu(3)}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if tee.data != someData || one.data != someData || two.data != someData {
		t.Error("not all were asked for the same report data")
	}
	if _, ok := a.(attest.CredentialAttester); ok {
		t.Error("a TEE that is not challenged became so")
	}
	two.err = wire.NotThisDevice
	if _, err := a.Attest(context.Background(), someData); !errors.Is(err, wire.NotThisDevice) {
		t.Errorf("got %v, want what the device said", err)
	}

	c, ok := attest.WithDevices(&challenged{}, one).(attest.CredentialAttester)
	if !ok {
		t.Fatal("a challenged TEE is no longer one")
	}
	got, err = c.AttestFor(context.Background(), someData, []byte("credential"))
	if err != nil || !bytes.Equal(got.Raw, []byte("credential")) || len(got.Devices) != 1 || string(c.TPMKeys().Device) != "ek" {
		t.Errorf("got %v, %v, want evidence for the credential, with the device", got, err)
	}
}
