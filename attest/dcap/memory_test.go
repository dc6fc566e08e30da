package dcap

import (
	"encoding/binary"
	"testing"

	"github.com/cohort-tee/cohort/attest"
)

func TestMemoryIsBounded(t *testing.T) {
	var m memory
	for i := range uint32(maxKnown + 10) {
		var chain attest.Digest
		binary.BigEndian.PutUint32(chain[:], i)
		m.remember(known{chain: chain}, &platform{})
	}
	if len(m.platforms) != maxKnown {
		t.Errorf("platforms = %d, want %d", len(m.platforms), maxKnown)
	}
}
