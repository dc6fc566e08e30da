package channelhttp

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestTraceOfRefusals: a unit logs the trace of a request that it refuses, named unauthenticated,
// and nothing of fields that have another form.
func TestTraceOfRefusals(t *testing.T) {
	c := newCluster(t, 1, http.NotFoundHandler())
	var log bytes.Buffer
	config := c.units[0].server.config
	config.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := testworld.Must(NewServer(config))
	const trace = "0af7651916cd43dd8448eb211c80319c"
	for parent, want := range map[string]string{"00-" + trace + "-b7ad6b7169203331-01": "unauthenticated_trace=" + trace + "\n", "hostile": `unauthenticated_trace=""`} {
		for _, path := range []string{wire.PathRequest, wire.PathSession, wire.PathOneOff} {
			log.Reset()
			r := httptest.NewRequest(http.MethodPut, path, nil)
			r.Header.Set("Traceparent", parent)
			s.ServeHTTP(httptest.NewRecorder(), r)
			if got := log.String(); !strings.Contains(got, want) || strings.Contains(got, "hostile") {
				t.Errorf("%s with %q: got log %q, want %q", path, parent, got, want)
			}
		}
	}
}
