package channel

import (
	"bytes"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/chunk"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestPlainAnswersAreWhole: the responses "not executed" and "closed" must be one chunk, and
// "closed" must contain only padding after its kind.
func TestPlainAnswersAreWhole(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	x := testworld.Must(s.newRequest(h.ID(), w.clock.Now().Add(time.Second), 0))
	in := &ServerRequest{host: h, header: x.header, raw: x.raw, keys: newKeys(&s.secret), at: w.clock.Now()}
	response := func(kind ResponseKind, content string, more bool) error {
		prefix, seal, err := in.responseWriter()
		if err != nil {
			t.Fatal(err)
		}
		first, at := append(append(make([]byte, chunk.LengthSize), in.responsePrefix(kind)...), content...), chunk.Final
		if more {
			at = chunk.More
		}
		b := append(prefix[:], seal.SealChunk(first, at)...)
		if more {
			b = append(b, seal.SealChunk(append(make([]byte, chunk.LengthSize), 0), chunk.Final)...)
		}
		_, err = x.Open(bytes.NewReader(b))
		return err
	}
	for kind, content := range map[ResponseKind]string{KindNotExecuted: "overload", KindClosed: ""} {
		if err := response(kind, content+"\x00\x00", false); err != nil {
			t.Errorf("kind %d: %v", kind, err)
		}
		testworld.Refused(t, response(kind, content, true), wire.Malformed)
	}
	testworld.Refused(t, response(KindClosed, "overload", false), wire.Malformed)
}

// TestMarked: an Idempotency-Key marks a request only if it is not empty, at the unit too.
func TestMarked(t *testing.T) {
	for _, c := range markings {
		if got := HasIdempotencyKey(c.fields); got != c.want {
			t.Errorf("%v: got %v, want %v", c.fields, got, c.want)
		}
		x := &OHTTPServerRequest{credentials: &credentials{UnitCredentials: UnitCredentials{OneOff: true}}}
		h := bhttp.Head{Method: http.MethodPost, Scheme: "https", Authority: "a", Path: "/", Fields: c.fields}
		if err := x.Allowed(h); (err == nil) != c.want || !c.want && !errors.Is(err, wire.NotAllowed) {
			t.Errorf("unit, %v: got %v, want %v", c.fields, err, c.want)
		}
	}
}

// markings are header fields, with whether they mark a request.
var markings = []struct {
	fields http.Header
	want   bool
}{
	{http.Header{}, false},
	{http.Header{"Idempotency-Key": {""}}, false},
	{http.Header{"Idempotency-Key": {"1"}}, true},
}
