package der

import (
	"bytes"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
)

func TestEncoding(t *testing.T) {
	for _, n := range []int64{0, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 1 << 40} {
		if got, want := Integer(big.NewInt(n)), testworld.Must(asn1.Marshal(n)); !bytes.Equal(got, want) {
			t.Errorf("integer %d: got %x, want %x", n, got, want)
		}
	}
	for _, n := range []int{0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x10000, 1 << 20} {
		b := make([]byte, n)
		if got, want := Element(OctetString, b[:n/2], b[n/2:]), testworld.Must(asn1.Marshal(b)); !bytes.Equal(got, want) {
			t.Errorf("%d bytes: got %x, want %x", n, got[:8], want[:min(8, len(want))])
		}
	}
}
