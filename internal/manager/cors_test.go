package manager

import (
	"net/http"
	"strings"
	"testing"

	"github.com/cohort-tee/cohort/internal/bus/bustest"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestPagesOfOtherOrigins: a browser lets a page of any origin send the fields of the channel on
// the paths of the channel, and read those of the responses. Credentials are never allowed, and
// no other path is open.
func TestPagesOfOtherOrigins(t *testing.T) {
	w := newWorld(t)
	unit := w.named(bustest.Scoring)
	send := func(method, path string, fields ...string) http.Header {
		t.Helper()
		r := testworld.Must(http.NewRequest(method, "http://"+w.gateway+path, strings.NewReader("x")))
		r.Header.Set("Origin", "https://app.example")
		for i := 0; i < len(fields); i += 2 {
			r.Header.Set(fields[i], fields[i+1])
		}
		response := testworld.Must(http.DefaultClient.Do(r))
		response.Body.Close()
		response.Header.Set("Status", response.Status)
		return response.Header
	}
	for _, path := range []string{wire.PathSession, wire.PathRequest, wire.PathOneOff, wire.PathHistory, wire.PathTrust} {
		before := unit.calls.Load()
		h := send(http.MethodOptions, path, "Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "cohort-cookie,content-type")
		if h.Get("Status") != "204 No Content" || h.Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "POST") {
			t.Errorf("%s: got %v, want a preflight that is allowed", path, h)
		}
		for _, field := range []string{"Content-Type", "Incremental", wire.FieldCookie, wire.FieldTicket, wire.FieldCredential, wire.FieldUnit, wire.FieldHead, wire.FieldAffinity, "traceparent", "tracestate"} {
			if !strings.Contains(h.Get("Access-Control-Allow-Headers"), field) {
				t.Errorf("%s: a page may not send %s", path, field)
			}
		}
		if unit.calls.Load() != before {
			t.Errorf("%s: a preflight reached a unit", path)
		}
		h = send(http.MethodPost, path)
		for _, field := range []string{wire.FieldCookie, wire.FieldUnits, wire.FieldHead, wire.FieldTime, "Retry-After"} {
			if !strings.Contains(h.Get("Access-Control-Expose-Headers"), field) {
				t.Errorf("%s: a page may not read %s, refused or not: %v", path, field, h)
			}
		}
		if h.Get("Access-Control-Allow-Origin") != "*" || h.Get("Access-Control-Allow-Credentials") != "" {
			t.Errorf("%s: got %v, want all origins, without credentials", path, h)
		}
		if h := send(http.MethodOptions, path); h.Get("Status") == "204 No Content" {
			t.Errorf("%s: OPTIONS that is no preflight is served", path)
		}
	}
	for _, path := range []string{"/metrics", "/readyz", "/livez", "/"} {
		for _, method := range []string{http.MethodGet, http.MethodOptions} {
			if h := send(method, path, "Access-Control-Request-Method", "GET"); h.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("%s %s is open to pages: %v", method, path, h)
			}
		}
	}
}
