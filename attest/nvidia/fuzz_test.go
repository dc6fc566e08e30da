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

// FuzzReport demands that a report which parses is the sum of its parts, so that no
// byte of it is read by nobody, and that all else has a reason.
func FuzzReport(f *testing.F) {
	gpu := attesttest.NewNVIDIAVendor(time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)).GPU("GH100")
	raw, chain, err := gpu.Report(f.Context(), [32]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw, chain)
	f.Add(raw[:200], chain[:200])
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, raw, text []byte) {
		var refusal *attest.Refusal
		if c, err := parseChain(text); err == nil {
			_, err = c.identity()
			if err == nil {
				err = c.hold(nil, time.Time{})
			}
			if !errors.As(err, &refusal) {
				t.Fatalf("chain refused without a reason: %v", err)
			}
		} else if !errors.As(err, &refusal) {
			t.Fatalf("chain refused without a reason: %v", err)
		}
		r, err := parse(raw)
		if err != nil {
			if !errors.As(err, &refusal) {
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
