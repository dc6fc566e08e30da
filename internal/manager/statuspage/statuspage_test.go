package statuspage

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
)

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// cluster returns a status with units of two releases and a group.
func cluster() Status {
	s := Status{At: noon, Started: noon.Add(-26 * time.Hour), Version: "v0.9.1", BusConnections: 5, InFlight: 41, Copies: 48211, CopiesBytes: 31 << 20, PolicyHead: strings.Repeat("9f2c", 16), PolicySteps: 12}
	for i := range 5 {
		u := Unit{
			ID: fmt.Sprintf("%012x%020d", 0x9b4fb24edd6d+i*7919*7919, i), Task: "scoring", Identity: strings.Repeat("51ab", 16), Address: fmt.Sprintf("10.0.7.%d:8443", 11+i), State: Ready,
			InFlight: 12 * i, Here: int64(9 * i), Sessions: 9000 + 321*i, Seen: noon.Add(-time.Duration(i) * time.Second), NotAfter: noon.Add(time.Hour),
		}
		switch i {
		case 3:
			u.State, u.Identity = NotReady, strings.Repeat("c0de", 16)
		case 4:
			u.State, u.Task, u.Identity, u.Address = Paused, "trial/holder", strings.Repeat("77aa", 16), "[2001:db8:1:2:3:4:5:6]:8443"
		}
		s.Units = append(s.Units, u)
	}
	return s
}

// get returns the response to a path.
func get(t *testing.T, s Status, path string) *http.Response {
	t.Helper()
	server := httptest.NewServer(Pages(func() Status { return s }))
	t.Cleanup(server.Close)
	response := testworld.Must(http.Get(server.URL + path))
	t.Cleanup(func() { response.Body.Close() })
	return response
}

func text(r *http.Response) string { return string(testworld.Must(io.ReadAll(r.Body))) }

// TestPage: the page shows the units and releases, is marked as a hint, and has neither scripts nor
// other sources.
func TestPage(t *testing.T) {
	response := get(t, cluster(), "/")
	page := text(response)
	for _, want := range []string{
		"<title>Cohort manager: 5 units</title>", "<strong>Hint, not proof.</strong>", note, `<html lang="en">`, "<main>", "<header>", "<footer>", `<nav aria-label="This page">`,
		"48211 <small>31.0 MiB</small>", "step 12", "v0.9.1", "26h0m0s", "3 of 3", "0 of 1", `<span class="state bad">paused</span>`, `<span class="state good">ready</span>`, "[2001:db8:1:2:3:4:5:6]:8443", "trial/holder", "2026-12-01 13:00:00 UTC", "2s ago",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if n := regexp.MustCompile(`<th role="(columnheader|rowheader)" scope="(col|row)"`).FindAllString(page, -1); len(n) != 5+3+9+5 || len(n) != strings.Count(page, "<th ") {
		t.Errorf("got %d headings with a scope", len(n))
	}
	if strings.Count(page, "<td ") != strings.Count(page, `data-label="`) {
		t.Error("a cell has no label for narrow screens")
	}
	if found := regexp.MustCompile(`(?i)<script|javascript:|\son\w+=|style=|https?://`).FindString(page); found != "" {
		t.Errorf("the page contains %q", found)
	}
	if policy := response.Header.Get("Content-Security-Policy"); !strings.HasPrefix(policy, "default-src 'none'; style-src 'self';") || !strings.Contains(policy, "frame-ancestors 'none'") || strings.Contains(policy, "unsafe") {
		t.Errorf("got policy %q", policy)
	}
	if style := get(t, Status{}, "/status.css"); style.StatusCode != http.StatusOK || !strings.HasPrefix(style.Header.Get("Content-Type"), "text/css") || !strings.Contains(text(style), "prefers-color-scheme: dark") {
		t.Errorf("the style sheet: got %s, %s", style.Status, style.Header)
	}
	if empty := text(get(t, Status{}, "/")); strings.Count(empty, "No unit has sent a heartbeat") != 2 || strings.Contains(empty, "<table") {
		t.Errorf("without units: got %s", empty)
	}
	if other := get(t, Status{}, "/other"); other.StatusCode != http.StatusNotFound {
		t.Errorf("another path: got %s", other.Status)
	}
}

// TestHostileNames: text that a unit or an operator chose is shown as text.
func TestHostileNames(t *testing.T) {
	const hostile = `"><script>alert(1)</script><img src=x onerror=alert(2)>'&{{.}}`
	s := cluster()
	s.Version, s.PolicyHead = hostile, hostile
	for i := range s.Units {
		u := &s.Units[i]
		u.ID, u.Task, u.Identity, u.Address, u.State = hostile, hostile, hostile, hostile, State(hostile)
	}
	page := text(get(t, s, "/"))
	if strings.Contains(page, "<script") || strings.Contains(page, "<img") || strings.Contains(page, `title=""`) || !strings.Contains(page, "&lt;script&gt;") {
		t.Errorf("got %s", page)
	}
	for _, tag := range regexp.MustCompile(`<[^>]*>`).FindAllString(page, -1) {
		if strings.Contains(tag, "alert") && !strings.Contains(tag, "&lt;script&gt;") {
			t.Errorf("got tag %s", tag)
		}
	}
}

// TestJSON: the JSON form has everything that the page has, and is marked as a hint.
func TestJSON(t *testing.T) {
	response := get(t, cluster(), "/status.json")
	var s Status
	if err := json.Unmarshal([]byte(text(response)), &s); err != nil || response.Header.Get("Content-Type") != "application/json" {
		t.Fatalf("got %v, %v", err, response.Header)
	}
	want := complete(cluster())
	if got, want := fmt.Sprint(s), fmt.Sprint(want); got != want || s.Schema != schema || s.Note != note {
		t.Errorf("got %s\nwant %s", got, want)
	}
	if first := s.Releases[0]; len(s.Releases) != 3 || first.Units != 3 || first.Ready != 3 || first.InFlight != 36 || first.Sessions != 27963 {
		t.Errorf("got releases %+v", s.Releases)
	}
	if empty := text(get(t, Status{}, "/status.json")); !strings.Contains(empty, `"releases":[],"units":[]`) {
		t.Errorf("without units: got %s", empty)
	}
}
