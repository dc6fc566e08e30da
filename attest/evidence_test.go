package attest_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

var platforms = []attest.Platform{attest.Soft, attest.TPM, attest.SNP, attest.AzureSNP, attest.TDX, attest.SGX, attest.Nitro, attest.NvidiaGPU}

func TestEvidenceWrapperRoundTrip(t *testing.T) {
	seen := map[string]attest.Platform{}
	for _, platform := range platforms {
		want := attest.Evidence{Platform: platform, Raw: []byte{0, 0xfb, 0xff}}
		text, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[string(text)]; ok {
			t.Errorf("%s and %s have one wrapper", platform, other)
		}
		seen[string(text)] = platform
		var got attest.Evidence
		if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, %v, want %v", got, err, want)
		}
	}
}

func TestEvidenceWrapperText(t *testing.T) {
	got, err := json.Marshal(attest.Evidence{Platform: attest.Soft, Raw: []byte{0, 0xfb, 0xff}})
	if want := `["application/vnd.cohort.soft-evidence","APv_"]`; err != nil || string(got) != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
}

func TestEvidenceOfNoPlatformHasNoWrapper(t *testing.T) {
	for _, e := range []attest.Evidence{{Raw: []byte{1}}, {Platform: "enclave", Raw: []byte{1}}} {
		if _, err := json.Marshal(e); !errors.Is(err, wire.NoPlatform) {
			t.Errorf("%q: got %v, want %v", e.Platform, err, wire.NoPlatform)
		}
	}
	if _, err := json.Marshal(attest.Evidence{Platform: attest.Soft}); err == nil {
		t.Error("empty evidence has a wrapper")
	}
}

const mediaType = `"application/vnd.cohort.soft-evidence"`

var wrapperRefusals = []struct {
	name, text string
	want       attest.Reason
}{
	{"nothing", ``, wire.Malformed},
	{"null", `null`, wire.Malformed},
	{"object", `{"__cmwc_t":"tag:a,2026:b"}`, wire.Malformed},
	{"no value", `[` + mediaType + `]`, wire.Malformed},
	{"an indicator", `[` + mediaType + `,"AA",4]`, wire.Malformed},
	{"a third string", `[` + mediaType + `,"AA","AA"]`, wire.Malformed},
	{"value: number", `[` + mediaType + `,5]`, wire.Malformed},
	{"value: null", `[` + mediaType + `,null]`, wire.Malformed},
	{"value: empty", `[` + mediaType + `,""]`, wire.Malformed},
	{"value: padded", `[` + mediaType + `,"AA=="]`, wire.Malformed},
	{"value: plain base64", `[` + mediaType + `,"+/+/"]`, wire.Malformed},
	{"value: loose bits", `[` + mediaType + `,"AB"]`, wire.Malformed},
	{"value: new line", `[` + mediaType + `,"A\nA"]`, wire.Malformed},
	{"value: escaped", `[` + mediaType + `,"\u0041A"]`, wire.Malformed},
	{"space", `[` + mediaType + `, "AA"]`, wire.Malformed},
	{"space before", ` [` + mediaType + `,"AA"]`, wire.Malformed},
	{"type: number", `[60,"AA"]`, wire.Malformed},
	{"type: none", `["","AA"]`, wire.NoPlatform},
	{"type: unknown", `["application/eat+jwt","AA"]`, wire.NoPlatform},
	{"type: upper case", `["application/vnd.cohort.SOFT-evidence","AA"]`, wire.NoPlatform},
	{"type: parameter", `["application/vnd.cohort.soft-evidence; v=1","AA"]`, wire.NoPlatform},
}

// collected is a wrapper of evidence and one endorsement, in its one encoding.
const (
	collected   = `{"__cmwc_t":"urn:cohort:endorsed-evidence","evidence":[` + mediaType + `,"AA"],"vcek":[` + endorsement + `,"AQ"]}`
	endorsement = `"application/vnd.cohort.endorsement"`
)

func TestCollectionText(t *testing.T) {
	want := attest.Evidence{Platform: attest.Soft, Raw: []byte{0}, Endorsed: attest.Endorsements{"vcek": {1}}}
	text, err := json.Marshal(want)
	if err != nil || string(text) != collected {
		t.Errorf("got %s, %v, want %s", text, err, collected)
	}
	var got attest.Evidence
	if err := json.Unmarshal([]byte(collected), &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestCollectionRoles(t *testing.T) {
	for _, role := range []string{"", "evidence", "__cmwc_t", "VCEK", "a b", "<", strings.Repeat("a", 33)} {
		_, err := json.Marshal(attest.Evidence{Platform: attest.Soft, Raw: []byte{0}, Endorsed: attest.Endorsements{role: {1}}})
		if !errors.Is(err, wire.Malformed) {
			t.Errorf("role %q: got %v, want %v", role, err, wire.Malformed)
		}
	}
}

// TestCollectionRefusals: each row changes one thing in a good collection, and it is refused.
func TestCollectionRefusals(t *testing.T) {
	for _, c := range []struct {
		name, old, new string
		want           attest.Reason
	}{
		{"no endorsement", `,"vcek":[` + endorsement + `,"AQ"]`, "", wire.Malformed},
		{"no evidence", `"evidence":[` + mediaType + `,"AA"],`, "", wire.Malformed},
		{"no type", `"__cmwc_t":"urn:cohort:endorsed-evidence",`, "", wire.Malformed},
		{"another type", "endorsed-evidence", "evidence", wire.Malformed},
		{"type that is no text", `"urn:cohort:endorsed-evidence"`, "4", wire.Malformed},
		{"evidence that is an endorsement", mediaType, endorsement, wire.NoPlatform},
		{"endorsement that is evidence", endorsement, mediaType, wire.Malformed},
		{"endorsement that is a collection", `[` + endorsement + `,"AQ"]`, "{}", wire.Malformed},
		{"empty endorsement", `"AQ"`, `""`, wire.Malformed},
		{"role in capitals", `"vcek"`, `"VCEK"`, wire.Malformed},
		{"role twice", `"vcek"`, `"vcek":[` + endorsement + `,"AQ"],"vcek"`, wire.Malformed},
		{"another order", `"__cmwc_t":"urn:cohort:endorsed-evidence","evidence"`, `"evidence":[` + mediaType + `,"AA"],"__cmwc_t":"urn:cohort:endorsed-evidence","evidence"`, wire.Malformed},
		{"space", `,"vcek"`, `, "vcek"`, wire.Malformed},
		{"an end", `}`, ``, wire.Malformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			var e attest.Evidence
			if err := e.UnmarshalJSON([]byte(strings.Replace(collected, c.old, c.new, 1))); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestWith(t *testing.T) {
	e := attest.Evidence{Platform: attest.SNP, Endorsed: attest.Endorsements{"vlek": {1}, "crl": {2}}}
	got := e.WithEndorsements(attest.Endorsements{"crl": {3}, "ask_ark": {4}}).Endorsed
	if want := (attest.Endorsements{"vlek": {1}, "crl": {3}, "ask_ark": {4}}); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if e.Endorsed["crl"][0] != 2 || len(e.Endorsed) != 2 {
		t.Errorf("the evidence itself was changed: %v", e.Endorsed)
	}
	if got := e.WithEndorsements(nil).Endorsed; !reflect.DeepEqual(got, e.Endorsed) {
		t.Errorf("got %v, want what came along", got)
	}
}

func TestWrapperRefusals(t *testing.T) {
	for _, c := range wrapperRefusals {
		t.Run(c.name, func(t *testing.T) {
			var e attest.Evidence
			if err := e.UnmarshalJSON([]byte(c.text)); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if !reflect.DeepEqual(e, attest.Evidence{}) {
				t.Errorf("refused with %v", e)
			}
		})
	}
}

func TestWrapperSize(t *testing.T) {
	wrap := func(n int) []byte {
		text, err := json.Marshal(attest.Evidence{Platform: attest.Soft, Raw: make([]byte, n)})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	var e attest.Evidence
	if err := e.UnmarshalJSON(wrap(wire.MaxEvidence)); err != nil {
		t.Errorf("256 KiB: %v", err)
	}
	if err := e.UnmarshalJSON(wrap(wire.MaxEvidence + 1)); !errors.Is(err, wire.Malformed) {
		t.Errorf("one byte more: got %v, want %v", err, wire.Malformed)
	}
	if err := e.UnmarshalJSON(wrap(2 * wire.MaxEvidence)); !errors.Is(err, wire.TooLarge) {
		t.Errorf("512 KiB: got %v, want %v", err, wire.TooLarge)
	}
}

func FuzzEvidence(f *testing.F) {
	f.Add([]byte(`[` + mediaType + `,"APv_"]`))
	f.Add([]byte(collected))
	f.Add([]byte(composed))
	for _, c := range wrapperRefusals {
		f.Add([]byte(c.text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var e attest.Evidence
		if err := e.UnmarshalJSON(text); err != nil {
			if wire.ReasonOf(err) == wire.Internal {
				t.Fatalf("got %v, want a reason", err)
			}
			return
		}
		if again, err := e.MarshalJSON(); err != nil || !bytes.Equal(again, text) {
			t.Errorf("another encoding was read: got %s, want %s, %v", text, again, err)
		}
	})
}
