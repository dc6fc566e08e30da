package check

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// TestMiddlemanChanges holds that what checks call changed or cut is so on
// the wire: a check with a middleman that does nothing would prove nothing.
func TestMiddlemanChanges(t *testing.T) {
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(w, r.Body) }))
	defer gateway.Close()
	m, err := NewTamperingProxy(gateway.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	header := wire.Header{Number: 1, Target: wire.UnitID{1, 2}, NotAfter: time.Unix(1, 0)}.Encode()
	sent := append(header[:], "four more bytes"...)
	last := bytes.Clone(sent)
	last[len(last)*11/12] ^= 1
	for _, tt := range []struct {
		name, path string
		way        Change
		want       []byte
	}{
		{"nothing", wire.PathRequest, Change{}, sent},
		{"a request's bit", wire.PathRequest, Change{Request: FlipBit(11, 12)}, last},
		{"an answer's bit", wire.PathRequest, Change{Response: FlipBit(11, 12)}, last},
		{"half a response", wire.PathRequest, Change{Response: CutHalf}, sent[:len(sent)/2]},
		{"another path", wire.PathSession, Change{Request: CutHalf, Response: CutHalf}, sent},
	} {
		m.Way.Store(&tt.way)
		response, err := http.Post(m.URL+tt.path, "", bytes.NewReader(sent))
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || !bytes.Equal(got, tt.want) {
			t.Errorf("%s: got %x, %v, want %x", tt.name, got, err, tt.want)
		}
	}
	if got := m.Target.Load(); got == nil || *got != (wire.UnitID{1, 2}) {
		t.Errorf("got target %v, want the header's", got)
	}
}
