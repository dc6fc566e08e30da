package attest_test

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// FuzzEvidenceParts encodes evidence of arbitrary parts: it decodes to those parts, or has no
// encoding.
func FuzzEvidenceParts(f *testing.F) {
	f.Add([]byte{1, 2}, "crl", []byte{3}, byte(2))
	f.Add([]byte{}, "", []byte{}, byte(0))
	f.Add([]byte{0xff}, "checked", []byte{}, byte(17))
	f.Fuzz(func(t *testing.T, raw []byte, role string, endorsement []byte, devices byte) {
		want := attest.Evidence{Platform: attest.Soft, Raw: raw}
		if role != "" {
			want.Endorsed = attest.Endorsements{role: endorsement}
		}
		for i := range devices % 20 {
			want.Devices = append(want.Devices, attest.Evidence{Platform: attest.NvidiaGPU, Raw: append([]byte{i}, raw...), Endorsed: want.Endorsed})
		}
		text, err := want.MarshalJSON()
		if err != nil {
			return // parts without an encoding
		}
		var got attest.Evidence
		if err := got.UnmarshalJSON(text); err != nil {
			if wire.ReasonOf(err) == wire.Internal {
				t.Fatalf("got %v, want a reason", err)
			}
			return
		}
		if again, err := got.MarshalJSON(); err != nil || !bytes.Equal(again, text) || !bytes.Equal(got.Raw, want.Raw) || len(got.Devices) != len(want.Devices) {
			t.Fatalf("got %s, %v, want %s", again, err, text)
		}
	})
}

// FuzzCheckedParts encodes the fetching times of any two documents: they decode to the same
// values, or are refused.
func FuzzCheckedParts(f *testing.F) {
	f.Add("crl", "tcb_info", int64(1), int64(2))
	f.Add("a", "a", int64(-1), int64(1<<40))
	f.Fuzz(func(t *testing.T, first, second string, at, until int64) {
		all := []attest.Fetched{
			{Role: first, Digest: wire.Sum([]byte(first)), At: time.Unix(at, 0).UTC(), Until: time.Unix(until, 0).UTC()},
			{Role: second, Digest: wire.Sum([]byte(second)), At: time.Unix(at, 0).UTC(), Until: time.Unix(until, 0).UTC()},
		}
		if first > second {
			all[0], all[1] = all[1], all[0]
		}
		framed := attest.FrameFetched(all)
		got, err := attest.Endorsements{attest.RoleChecked: framed}.Fetched()
		if err != nil && wire.ReasonOf(err) != wire.Malformed {
			t.Fatalf("got %v, want a reason", err)
		}
		if err == nil && !reflect.DeepEqual(got, all) {
			t.Fatalf("got %v, want %v", got, all)
		}
	})
}
