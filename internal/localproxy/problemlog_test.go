package localproxy

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestLogIsBounded: of refused requests, and of responses that end early, each reason has one line a
// second, with the number of those that have none.
func TestLogIsBounded(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := testworld.Must(NewProxy(Config{
			Through: cluster(func(*http.Request) (*http.Response, error) { return nil, wire.Overload }), Host: func() string { return inside },
			Token: token, Log: slog.New(slog.NewTextHandler(&log, nil)),
		}))
		for _, want := range []string{"skipped=0", "skipped=999"} {
			for range 1000 {
				p.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
			}
			if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, want) {
				t.Errorf("got %s, want one line with %s", got, want)
			}
			log.Reset()
			time.Sleep(logInterval)
		}
		x := &exchange{p: p}
		for range 1000 {
			x.abort(httptest.NewRequest(http.MethodGet, "/", nil), wire.Refuse(wire.Truncated, "response", "its beginning", "all of it"))
		}
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "response aborted") {
			t.Errorf("got %s, want one line", got)
		}
	})
}

// TestLoggedReasons: reasons have lines of their own up to a limit, and one line together above it.
func TestLoggedReasons(t *testing.T) {
	l, at, lines := newProblemLog(slog.New(slog.DiscardHandler)), time.Unix(1e9, 0), 0
	for i := range 10 * maxReasons {
		if _, ok := l.admits(wire.Reason(fmt.Sprint("reason ", i)), at); ok {
			lines++
		}
	}
	if lines != maxReasons+1 || len(l.lines) != maxReasons+1 {
		t.Errorf("got %d lines of %d reasons, want %d", lines, len(l.lines), maxReasons+1)
	}
}
