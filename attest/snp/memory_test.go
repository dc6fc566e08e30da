package snp

import (
	"encoding/binary"
	"testing"

	"github.com/cohort-tee/cohort/attest"
)

func TestMemoryIsBounded(t *testing.T) {
	var m memory
	for i := range uint32(maxKnown + 10) {
		var leaf attest.Digest
		binary.BigEndian.PutUint32(leaf[:], i)
		m.remember(known{leaf: leaf}, &chain{})
	}
	if len(m.chains) != maxKnown {
		t.Errorf("chains = %d, want %d", len(m.chains), maxKnown)
	}
}
