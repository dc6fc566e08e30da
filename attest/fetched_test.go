package attest_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"reflect"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// checkedVector is testdata/vectors/checked.json: the content of role "checked", and its bytes.
type checkedVector struct {
	Checked []attest.Fetched `json:"checked"`
	Framed  string           `json:"framed"` // hexadecimal
}

func TestCheckedVector(t *testing.T) {
	b, err := os.ReadFile("testdata/vectors/checked.json")
	if err != nil {
		t.Fatal(err)
	}
	var v checkedVector
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	framed := attest.FrameFetched(v.Checked)
	if got := hex.EncodeToString(framed); got != v.Framed {
		t.Errorf("got %s, want %s", got, v.Framed)
	}
	if got, err := (attest.Endorsements{attest.RoleChecked: framed}).Fetched(); err != nil || !reflect.DeepEqual(got, v.Checked) {
		t.Errorf("got %v, %v, want %v", got, err, v.Checked)
	}
}

// had returns a document that was fetched some time before someTime.
func had(role string, document []byte, before time.Duration) attest.Fetched {
	return attest.Fetched{Role: role, Digest: wire.Sum(document), At: someTime.Add(-before), Until: someTime.Add(time.Hour)}
}

func TestCheckedRefusals(t *testing.T) {
	one := attest.FrameFetched([]attest.Fetched{had("crl", []byte{1}, 0)})
	crl, sum, at := []byte("crl"), make([]byte, 32), wire.Uint64(1)
	frame := func(fields ...[]byte) []byte { return wire.Frame(wire.LabelChecked, fields...) }
	for name, raw := range map[string][]byte{
		"empty":                  {},
		"another label":          wire.Frame(wire.LabelRegister),
		"cut":                    one[:len(one)-1],
		"three fields":           frame(crl, sum, at),
		"short digest":           frame(crl, sum[1:], at, at),
		"short time":             frame(crl, sum, at[1:], at),
		"long time":              frame(crl, sum, at, append(at, 1)),
		"time without end":       frame(crl, sum, at, wire.Uint64(1<<40)),
		"no role":                frame(nil, sum, at, at),
		"role of digits":         frame([]byte("crl1"), sum, at, at),
		"role twice":             frame(crl, sum, at, at, crl, sum, at, at),
		"roles in another order": frame([]byte("tcb_info"), sum, at, at, crl, sum, at, at),
	} {
		if got, err := (attest.Endorsements{attest.RoleChecked: raw}).Fetched(); !errors.Is(err, wire.Malformed) || got != nil {
			t.Errorf("%s: got %v, %v, want malformed", name, got, err)
		}
	}
}

// TestCheckedWithin: a revocation list or a statement counts only if exactly that document was
// fetched recently enough. The time of fetching a certificate does not matter.
func TestCheckedWithin(t *testing.T) {
	list, statement := []byte("list"), []byte("statement")
	both := attest.Endorsements{"crl": list, "tcb_info": statement, "vcek": []byte("certificate")}
	const day = 24 * time.Hour
	for _, row := range []struct {
		name    string
		within  time.Duration
		came    attest.Endorsements
		checked []attest.Fetched
		want    attest.Reason
	}{
		{"nobody asks", 0, both, nil, ""},
		{"just within", day, both, []attest.Fetched{had("crl", list, day), had("tcb_info", statement, 0)}, ""},
		{"a second longer ago", day, both, []attest.Fetched{had("crl", list, day+time.Second), had("tcb_info", statement, 0)}, wire.Expired},
		{"the statement longer ago", day, both, []attest.Fetched{had("crl", list, 0), had("tcb_info", statement, 2*day)}, wire.Expired},
		{"nobody says when", day, both, nil, wire.Expired},
		{"of one nobody says when", day, both, []attest.Fetched{had("crl", list, 0)}, wire.Expired},
		{"of another document", day, both, []attest.Fetched{had("crl", []byte("newer"), 0), had("tcb_info", statement, 0)}, wire.Expired},
		{"in another role", day, both, []attest.Fetched{had("pck_crl", list, 0), had("tcb_info", statement, 0)}, wire.Expired},
		{"a list of a GPU's model longer ago", day, attest.Endorsements{"model_crl": list}, []attest.Fetched{had("model_crl", list, 2*day)}, wire.Expired},
		{"as far ahead as clocks differ", day, both, []attest.Fetched{had("crl", list, -wire.MaxClockSkew), had("tcb_info", statement, 0)}, ""},
		{"in the future", day, both, []attest.Fetched{had("crl", list, -wire.MaxClockSkew-time.Second), had("tcb_info", statement, 0)}, wire.ClockSkew},
		{"in the future, and nobody asks", 0, both, []attest.Fetched{had("crl", list, 0), had("tcb_info", statement, -day)}, wire.ClockSkew},
		{"certificates alone", day, attest.Endorsements{"vcek": []byte("certificate")}, nil, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			m := attesttest.Measure("scoring")
			result, err := attest.NewVerifier(liar{attest.Claims{Measurement: m, ReportData: someData[:]}}).Appraise(attest.Question{
				Evidence:     attest.Evidence{Platform: attest.Soft, Raw: []byte{1}, Endorsed: row.came},
				Endorsements: attest.Endorsements{attest.RoleChecked: attest.FrameFetched(row.checked)},
				ReportData:   someData, Rules: map[attest.Platform]attest.Rules{attest.Soft: {CheckedWithin: row.within}}, At: someTime,
			})
			if err != nil && wire.ReasonOf(err) != row.want || result.Appraised() != (row.want == "") {
				t.Errorf("got OK %v, %v, want %q", result.Appraised(), err, row.want)
			}
			if result.Appraised() && len(result.Fetched()) != len(row.checked) {
				t.Errorf("got %v, want %v", result.Fetched(), row.checked)
			}
		})
	}
}

// FuzzChecked: every accepted input encodes to the same bytes.
func FuzzChecked(f *testing.F) {
	f.Add(attest.FrameFetched([]attest.Fetched{had("crl", []byte{1}, 0), had("tcb_info", []byte{2}, time.Hour)}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		all, err := attest.Endorsements{attest.RoleChecked: raw}.Fetched()
		if err == nil && raw != nil && !bytes.Equal(attest.FrameFetched(all), raw) {
			t.Errorf("got %x, want %x", attest.FrameFetched(all), raw)
		}
	})
}
