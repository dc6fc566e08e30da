package busrelay

import (
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

func TestNumbers(t *testing.T) {
	r := New(nil, time.Now)
	if got := r.Number(); got < 1<<63 {
		t.Errorf("without a range: got %d, want one above 2^63", got)
	}
	r.setRange(bus.Range{First: 7, Count: 2})
	if a, b := r.Number(), r.Number(); a != 7 || b != 8 {
		t.Errorf("got %d and %d, want 7 and 8", a, b)
	}
	if got := r.Number(); got < 1<<63 {
		t.Errorf("after the range: got %d, want one above 2^63", got)
	}
}

// TestItemOf reads session and expiry from a sealed message.
func TestItemOf(t *testing.T) {
	header := envelope.Header{For: wire.Digest{1}, Ring: [16]byte{2}, Session: wire.SessionID{3}, Expiry: 4, Sealer: wire.UnitID{5}}
	sealed := envelope.Sealed{AD: header.Encode(envelope.Session), Nonce: make([]byte, 12), Ciphertext: []byte("ciphertext")}.Encode(envelope.Session)
	got, err := itemOf(envelope.Session, sealed)
	testworld.NoError(t, err)
	if got.Kind != bus.Sealed || got.Session != header.Session || got.Expiry != header.Expiry {
		t.Errorf("got %v %v %v, want those of %+v", got.Kind, got.Session, got.Expiry, header)
	}
	_, err = itemOf(envelope.Tombstone, sealed)
	testworld.Refused(t, err, wire.Malformed)
	_, err = itemOf(envelope.Session, sealed[1:])
	testworld.Refused(t, err, wire.Malformed)
}
