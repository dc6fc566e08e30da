package unitauth

import (
	"bytes"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestIntroduction reads what is no introduction.
func TestIntroduction(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing":        nil,
		"another label":  wire.Frame(wire.LabelCookie, make([]byte, 16), []byte("device"), []byte("key")),
		"a field less":   wire.Frame(wire.LabelIntroduction, make([]byte, 16), []byte("device")),
		"a short id":     wire.Frame(wire.LabelIntroduction, make([]byte, 15), []byte("device"), []byte("key")),
		"bytes left":     append(Introduction{}.Encode(), 0),
		"more than 8KiB": Introduction{TPMKeys: attest.TPMKeys{Key: make([]byte, maxIntroduction)}}.Encode(),
	} {
		if got, err := UnverifiedIntroduction(b); wire.ReasonOf(err) != wire.Malformed && wire.ReasonOf(err) != wire.TooLarge {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
}

func FuzzIntroduction(f *testing.F) {
	f.Add(Introduction{wire.UnitID{1}, attest.TPMKeys{Device: []byte("device"), Key: []byte("key")}}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if in, err := UnverifiedIntroduction(b); err == nil && !bytes.Equal(in.Encode(), b) {
			t.Errorf("got %x, want %x", in.Encode(), b)
		}
	})
}
