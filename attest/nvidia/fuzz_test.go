package nvidia

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// FuzzReport demands that a report which parses is the sum of its parts, so that no
// byte of it is read by nobody, and that all else has a reason.
func FuzzReport(f *testing.F) {
	gpu := attesttest.NewNVIDIAVendor(noon).GPU("GH100")
	gpu.Edit = func(r *attesttest.NVIDIAReport) { r.Count, r.Measurements = 2, r.Measurements[:2*55] } // small seeds, or minimizing takes all the time
	raw, _, err := gpu.Report(f.Context(), [32]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:200])
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := parse(raw)
		if err != nil {
			if refusal := (*attest.Refusal)(nil); !errors.As(err, &refusal) {
				t.Fatalf("refused without a reason: %v", err)
			}
			return
		}
		size := sizeRequest + 8 + 55*len(r.measurements) + sizeNonce + 2 + sizeSignature
		for _, value := range r.opaque {
			size += 4 + len(value)
		}
		if size != len(raw) || !bytes.Equal(slices.Concat(r.signed, r.signature), raw) {
			t.Fatalf("got parts of %d bytes, want %d", size, len(raw))
		}
		_ = r.claims()
	})
}

// FuzzLayer demands that what a leaf says of its firmware is read or refused with a
// reason, and that flags are shown for what they are.
func FuzzLayer(f *testing.F) {
	gpu := attesttest.NewNVIDIAVendor(noon).GPU("GB100")
	f.Add(gpu.DeviceID().Value)
	f.Add(gpu.TCBInfo(0x80, 0, 0, 1).Value)
	f.Fuzz(func(t *testing.T, der []byte) {
		for _, read := range []func([]byte) (layer, error){readDeviceID, readTCBInfo} {
			l, err := read(der)
			if refusal := (*attest.Refusal)(nil); err != nil && !errors.As(err, &refusal) {
				t.Fatalf("refused without a reason: %v", err)
			}
			bad := slices.ContainsFunc(l.flagNames(), func(name string) bool { return name == "not_secure" || name == "recovery" || name == "debug" })
			if err == nil && bad != l.debug() {
				t.Fatalf("got debug %v with flags %v", l.debug(), l.flagNames())
			}
		}
	})
}

func TestDecode(t *testing.T) {
	raw := []byte{0x11, 0xe0, 0x01, 0xff, 0xab}
	for name, text := range map[string]string{"hex": hex.EncodeToString(raw), "base64": base64.StdEncoding.EncodeToString(raw)} {
		got, encoding, err := Decode([]byte(text))
		if err != nil || encoding != name || !bytes.Equal(got, raw) {
			t.Errorf("%s: got %x, %q, %v", name, got, encoding, err)
		}
		for _, wrong := range []string{text + "\n", " " + text, text + "=", "-" + text} {
			if got, encoding, err := Decode([]byte(wrong)); err == nil && encoding == name {
				t.Errorf("%q: got %x, want it refused", wrong, got)
			}
		}
	}
	if _, encoding, err := Decode([]byte("11E001FFAB")); err == nil && encoding == "hex" {
		t.Error("capitals were read as hexadecimal")
	}
}
