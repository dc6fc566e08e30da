package channelhttp

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

var update = flag.Bool("update", false, "write testdata/vectors anew")

// retryCase is what a client does when each attempt of a call meets the same hint.
type retryCase struct {
	Hint    string `json:"hint"`
	Request string `json:"request"`
	// What follows.
	Attempts int         `json:"attempts"` // requests that were sent, the first included
	Bound    int         `json:"bound"`    // those that were bound to a unit
	Units    int         `json:"units"`    // units that they were bound to, while there is one session
	Tickets  int         `json:"tickets"`  // attempts that carried the ticket
	Sessions int         `json:"sessions"` // that were opened, the first included
	Seconds  float64     `json:"seconds"`  // that the call took, on a clock that stands still while it works
	Outcome  wire.Reason `json:"outcome"`
}

// retryHints are responses, none of which is authenticated: only the status counts. Status 0 is a
// connection that breaks after the request was sent.
var retryHints = []struct {
	name   string
	status int
}{
	{"421 misdirected", http.StatusMisdirectedRequest},
	{"410 rekey", http.StatusGone},
	{"428 ticket-wanted", http.StatusPreconditionRequired},
	{"412 expired", http.StatusPreconditionFailed},
	{"409 replayed", http.StatusConflict},
	{"400 malformed", http.StatusBadRequest},
	{"503 cut-off", http.StatusServiceUnavailable},
	{"503 unavailable", http.StatusServiceUnavailable},
	{"429 rate", http.StatusTooManyRequests},
	{"502 without a problem", http.StatusBadGateway},
	{"200 that does not open", http.StatusOK},
	{"a broken connection", 0},
}

// retryRequests are calls by what makes them repeatable.
var retryRequests = []struct {
	name, method, key string
}{
	{"GET", http.MethodGet, ""},
	{"PUT with an Idempotency-Key", http.MethodPut, "1"},
	{"PUT", http.MethodPut, ""},
}

// TestRetryVectors: what follows each hint is what testdata/vectors/retries.json says, which
// docs/spec/channel.md, section 6, specifies.
func TestRetryVectors(t *testing.T) {
	const path = "testdata/vectors/retries.json"
	var list []retryCase
	for _, hint := range retryHints {
		for _, request := range retryRequests {
			c := retryCase{Hint: hint.name, Request: request.name}
			bubble.Test(t, func(t *testing.T) { c.run(t, hint.status, request.method, request.key) })
			list = append(list, c)
		}
	}
	if *update {
		testworld.Must(0, os.WriteFile(path, append(testworld.Must(json.MarshalIndent(list, "", "  ")), '\n'), 0o644))
	}
	var want []retryCase
	testworld.Must(0, json.Unmarshal(testworld.Must(os.ReadFile(path)), &want))
	if len(list) != len(want) {
		t.Fatalf("got %d cases, want %d", len(list), len(want))
	}
	for i, c := range list {
		if c != want[i] {
			t.Errorf("got  %+v\nwant %+v", c, want[i])
		}
	}
}

// run makes one call, all of whose attempts meet the hint.
func (c *retryCase) run(t *testing.T, code int, method, key string) {
	t.Helper()
	cluster := newCluster(t, 5, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	rt := cluster.client(cluster.byTask(), 0)
	testworld.Must(rt.Session(t.Context()))
	units := map[wire.UnitID]bool{}
	cluster.tampers = func(r *http.Request) (*http.Response, error) {
		if r.URL.Path != wire.PathRequest {
			return nil, nil
		}
		raw := testworld.Must(io.ReadAll(r.Body))
		c.Attempts++
		if unit := testworld.Must(wire.ParseHeader(raw[:wire.HeaderSize])).Target; unit != (wire.UnitID{}) {
			units[unit] = true
			c.Bound++
		}
		if r.Header.Get(wire.FieldTicket) != "" {
			c.Tickets++
		}
		if code == 0 {
			return nil, errors.New("connection reset")
		}
		return status(code), nil
	}
	begin := time.Now()
	r := testworld.Must(http.NewRequest(method, base, nil))
	if method == http.MethodPut {
		r = testworld.Must(http.NewRequest(method, base, strings.NewReader("content")))
	}
	if key != "" {
		r.Header.Set("Idempotency-Key", key)
	}
	response, err := rt.RoundTrip(r)
	if err == nil {
		response.Body.Close()
		t.Fatalf("%s, %s: got a response", c.Hint, c.Request)
	}
	c.Sessions, c.Outcome = int(rt.Opens()), wire.ReasonOf(err)
	if c.Sessions == 1 { // the opener of the next one is any of them
		c.Units = len(units)
	}
	c.Seconds = time.Since(begin).Seconds()
}
