package systest

import (
	"bytes"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
)

// TestLargeContentRefused: an application refuses an upload after reading only its header
// fields. Through gateway and unit the client gets that response, and its next request is
// served.
func TestLargeContentRefused(t *testing.T) {
	t.Parallel()
	c := New(t, scoring(time.Hour))
	c.StartManager()
	attended(t, c.Start("scoring", "scoring 1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
		}
	})))
	ch := c.OpenChannel(c.OpenConfig("scoring"))
	ask := func(method string, size, want int) {
		t.Helper()
		r := testworld.Must(http.NewRequestWithContext(t.Context(), method, scoringURL+"/", io.MultiReader(bytes.NewReader(make([]byte, size)))))
		answer, err := ch.RoundTrip(r)
		if err != nil {
			t.Errorf("%s of %d bytes: %v", method, size, err)
			return
		}
		defer answer.Body.Close()
		if _, err := io.Copy(io.Discard, answer.Body); err != nil || answer.StatusCode != want {
			t.Errorf("%s of %d bytes: got %d, %v, want %d", method, size, answer.StatusCode, err, want)
		}
	}
	for _, size := range []int{100, 100 << 10, 1 << 20, 8 << 20} {
		for range 10 {
			ask(http.MethodPut, size, http.StatusRequestEntityTooLarge)
			ask(http.MethodPost, 10, http.StatusOK)
		}
	}
}
