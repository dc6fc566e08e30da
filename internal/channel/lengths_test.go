package channel

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"testing"

	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestLengthsAtTheEnds replaces each length that a peer sends by values at both ends of its
// range. Each is refused, and no memory is allocated for bytes that do not arrive.
func TestLengthsAtTheEnds(t *testing.T) {
	lengths := []uint32{0, 1, chunk.TagSize - 1, chunk.TagSize, chunk.MaxPlaintext + chunk.TagSize, chunk.MaxPlaintext + chunk.TagSize + 1, 1<<31 - 1, 1 << 31, 1<<31 | 1, 1<<32 - 2, 1<<32 - 1}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	t.Run("chunks", func(t *testing.T) {
		for _, length := range lengths {
			var secret [secretSize]byte
			message := append(binary.BigEndian.AppendUint32(nil, length), make([]byte, 64)...)
			o := chunk.NewReader(bytes.NewReader(message), testworld.Must(newKeys(&secret).message(wire.LabelRequestKey)), nil)
			if b, _, err := o.Next(); err == nil {
				t.Errorf("length %d: got %d bytes", length, len(b))
			}
		}
	})
	t.Run("frames", func(t *testing.T) { framesAtTheEnds(t, lengths) })
	runtime.ReadMemStats(&after)
	if taken := after.TotalAlloc - before.TotalAlloc; taken > 64<<20 {
		t.Errorf("took %d bytes of memory", taken)
	}
}

// framesAtTheEnds changes each length in an open request, its response, a sealed session and a
// tombstone.
func framesAtTheEnds(t *testing.T, lengths []uint32) {
	t.Helper()
	w := newWorld(t)
	h := w.host(Limits{})
	o := testworld.Must(NewClientHandshake(w.byTask(), 0))
	a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, noon))
	response, sealed, err := a.Finish(noEvidence, noon)
	testworld.Must(0, err)
	for name, c := range map[string]struct {
		label wire.Label
		good  []byte
		take  func([]byte) error
	}{
		"open request":   {wire.LabelSessionOpen, o.Request(), func(b []byte) error { _, err := h.Accept(OpenRequest{Body: b}, noon); return err }},
		"answer":         {wire.LabelSessionResponse, response, func(b []byte) error { _, err := o.Finish(b, w.trust(), noon); return err }},
		"sealed session": {wire.LabelSealedSession, sealed, func(b []byte) error { _, err := h.ImportSession(b, noon); return err }},
		"tombstone":      {wire.LabelTombstone, wire.Frame(wire.LabelTombstone, nil, nil, nil), func(b []byte) error { _, err := h.Terminate(b, noon); return err }},
	} {
		at := 1 + len(c.label)
		for at+4 <= len(c.good) {
			size := binary.BigEndian.Uint32(c.good[at:])
			for _, length := range append(lengths, size-1, size+1) {
				bad := bytes.Clone(c.good)
				binary.BigEndian.PutUint32(bad[at:], length)
				if err := c.take(bad); err == nil && length != size {
					t.Errorf("%s: the length %d at %d in place of %d was taken", name, length, at, size)
				}
			}
			at += 4 + int(size)
		}
	}
}
