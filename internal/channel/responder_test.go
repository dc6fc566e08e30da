package channel

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// TestLentBuffersOfAnswers: a returned buffer contains no plaintext of a response, even if a
// large head moved the content.
func TestLentBuffersOfAnswers(t *testing.T) {
	h := newWorld(t).host(Limits{})
	for _, head := range []int{10, 2 * headRoom} {
		r := newResponder(io.Discard, h, sealedSink{chunk.NewWriter(testworld.Must(newAEAD(make([]byte, 32))))}, nil)
		content := strings.Repeat("content", 100)
		r.BufferContent([]byte(content))
		lent := r.lent
		testworld.Must(r.Whole(bhttp.Head{Status: 200, Fields: map[string][]string{"Large": {strings.Repeat("x", head)}}}, nil))
		testworld.Must(0, r.Finish())
		r.Release()
		if bytes.Contains((*lent)[:cap(*lent)], []byte(content[:70])) {
			t.Errorf("with a head of %d bytes: got plaintext, want none", head)
		}
	}
}
