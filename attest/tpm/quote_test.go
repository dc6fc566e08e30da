package tpm

import (
	"encoding/binary"
	"testing"

	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/google/go-tpm/tpm2"
)

// TestQuoteSelections: an unverified quote claims many PCR selections. Parsing it takes no more
// work or memory.
func TestQuoteSelections(t *testing.T) {
	raw := tpm2.Marshal(tpm2.TPMSAttest{
		Magic: generated, Type: tpm2.TPMSTAttestQuote,
		Attested: tpm2.NewTPMUAttest(tpm2.TPMSTAttestQuote, &tpm2.TPMSQuoteInfo{PCRSelect: selectPCRs(quotedPCRs), PCRDigest: tpm2.TPM2BDigest{Buffer: make([]byte, 32)}}),
	})
	_, err := UnverifiedQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	at := len(raw) - 34 - 6 - 4 // the selection count, before one selection and the digest
	for _, count := range []uint32{0, 2, 17, 1 << 20} {
		binary.BigEndian.PutUint32(raw[at:], count)
		allocated := testing.AllocsPerRun(1, func() { _, err = UnverifiedQuote(raw) })
		wantRefusal(t, err, wire.Malformed, "tpm: quote")
		if allocated > 20 {
			t.Errorf("%d selections: got %v pieces of memory, want some for the refusal", count, allocated)
		}
	}
}
