package channel

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/testworld"
)

// TestStreamWritten: WriteTo and Read produce the same bytes of a request of many chunks, and the
// buffer is returned at the end.
func TestStreamWritten(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	trailer := http.Header{"Late": {"3"}}
	for _, size := range []int{1, maxPart - 1, maxPart, maxPart + 1, 3*maxPart + 1} {
		for _, length := range []int64{int64(size), bhttp.Indeterminate} {
			x := testworld.Must(s.NewRequest(RequestConfig{Target: h.ID(), NotAfter: noon.Add(time.Minute), Pool: &chunk.Pool{}}))
			again := func() *RequestStream {
				h := bhttp.Head{Method: "POST", Scheme: "https", Authority: "a", Path: "/", Length: length}
				return testworld.Must(x.Stream(h, io.NopCloser(strings.NewReader(strings.Repeat("x", size))), trailer))
			}
			read, written := again(), again()
			want := testworld.Must(io.ReadAll(read))
			var got bytes.Buffer
			if n, err := written.WriteTo(&got); err != nil || n != int64(got.Len()) || !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%d bytes, length %d: got %d of %d bytes, %v, want %d as they are read", size, length, n, got.Len(), err, len(want))
			}
			if read.buf != nil || written.buf != nil || !written.read.Load() {
				t.Error("a buffer is kept at the end")
			}
			broken := again()
			if _, err := broken.WriteTo(&brief{100}); err != io.ErrShortWrite {
				t.Errorf("got %v, want %v", err, io.ErrShortWrite)
			}
		}
	}
}

// brief is a writer that fails after some bytes.
type brief struct{ left int }

func (s *brief) Write(p []byte) (int, error) {
	n := min(len(p), s.left)
	s.left -= n
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}
