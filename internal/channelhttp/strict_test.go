package channelhttp

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// closing sends a request that closes a session, with the given flags, head and content.
func (c *cluster) closing(s *channel.Session, u *unit, flags wire.Flags, h bhttp.Head, body string) (*channel.ClientRequest, *http.Response) {
	c.T.Helper()
	x := testworld.Must(s.NewRequest(channel.RequestConfig{Target: u.ID(), NotAfter: c.clock.Now().Add(20 * time.Second), Flags: flags}))
	raw := testworld.Must(x.Whole(h, strings.NewReader(body)))
	r := testworld.Must(http.NewRequest(http.MethodPost, "http://unit"+wire.PathRequest, bytes.NewReader(raw)))
	r.Header.Set("Content-Type", wire.TypeRequest)
	return x, serve(u.server, r)
}

// TestCloseRefusals: a request that closes a session has no content and asks for no
// receipt. A request with either is not executed, and the session stays open.
func TestCloseRefusals(t *testing.T) {
	c := newCluster(t, 1, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the app was asked") }))
	u := c.units[0]
	s, _ := c.opened(u.Host, c.byTask())
	post := bhttp.Head{Method: "POST", Scheme: "https", Authority: "a", Path: "/", Fields: http.Header{}, Length: 2}
	_, response := c.closing(s, u, wire.FlagClose, post, "hi")
	if got := u.Stats(c.clock.Now()); response.StatusCode != http.StatusOK || got.Sessions != 1 || got.Closed != 0 {
		t.Errorf("with content: got status %d and %+v, want 200 and an open session", response.StatusCode, got)
	}
	if said := testworld.Must(io.ReadAll(response.Body)); bytes.Contains(said, []byte("problem")) {
		t.Errorf("with content: got %s, want an authenticated answer", said)
	}
	if _, response = c.closing(s, u, wire.FlagClose|wire.FlagReceipt, bhttp.Head{}, ""); response.StatusCode != http.StatusBadRequest {
		t.Errorf("with a receipt wanted: got status %d, want 400", response.StatusCode)
	}
	x, response := c.closing(s, u, wire.FlagClose, bhttp.Head{}, "")
	if a := testworld.Must(x.Open(response.Body)); a.Kind != channel.KindClosed {
		t.Errorf("without either: got an answer of kind %d, want %d", a.Kind, channel.KindClosed)
	}
}

// TestMarkedCall: a request counts as marked if it has an Idempotency-Key, and only then.
func TestMarkedCall(t *testing.T) {
	for fields, want := range map[string]bool{"": false, "1": true} {
		r := testworld.Must(http.NewRequest(http.MethodPost, base, nil))
		r.Header.Set("Idempotency-Key", fields)
		if got := (&call{request: r}).knownAttempt().Marked; got != want {
			t.Errorf("%q: got %v, want %v", fields, got, want)
		}
	}
}

// TestTicketOfAnotherSession: a request carries a valid ticket of another session. The unit
// still fetches the manager's copy of the request's session, and the ticket joins no
// session.
func TestTicketOfAnotherSession(t *testing.T) {
	c := newCluster(t, 2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	opener, u := c.units[0], c.units[1]
	s, sealed := c.opened(opener.Host, c.byTask())
	_, other := c.opened(opener.Host, c.byTask())
	c.stored[s.ID()] = sealed
	x := testworld.Must(s.NewRequest(channel.RequestConfig{NotAfter: c.clock.Now().Add(20 * time.Second)}))
	raw := testworld.Must(x.Whole(bhttp.Head{Method: "GET", Scheme: "https", Authority: "a", Path: "/", Fields: http.Header{}}, nil))
	r := testworld.Must(http.NewRequest(http.MethodPost, "http://unit"+wire.PathRequest, bytes.NewReader(raw)))
	r.Header.Set("Content-Type", wire.TypeRequest)
	r.Header.Set(wire.FieldTicket, base64.RawURLEncoding.EncodeToString(other))
	if response := serve(u.server, r); response.StatusCode != http.StatusOK {
		t.Errorf("got status %d, want 200", response.StatusCode)
	}
	if n := u.Stats(c.clock.Now()).Sessions; n != 1 {
		t.Errorf("got %d sessions in the table, want the one that was asked for", n)
	}
}

// TestOneOffsInAGroup: a unit of a group refuses every one-off request.
func TestOneOffsInAGroup(t *testing.T) {
	var asked atomic.Int64
	c := newCluster(t, 1, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	u := c.units[0]
	keys := x25519(c.keysOf(u, c.byTask()))
	get := testworld.Must(http.NewRequest(http.MethodGet, base, nil))
	s := c.standing(c.keyOf(u.Host), "1")
	s.Group, s.Role = "trial", "holder"
	if err := u.Update(s); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		method, kind string
		body         []byte
	}{
		{"GET", "", nil},
		{"POST", wire.TypeOneOff, oneOffBody(keys, true, get)},
		{"POST", wire.TypeChunkedOneOff, oneOffBody(keys, false, get)},
		{"POST", wire.TypeOneOff, nil},
		{"POST", "text/plain", nil},
		{"PUT", "", nil},
	} {
		r := httptest.NewRequest(row.method, wire.PathOneOff, bytes.NewReader(row.body))
		r.Header.Set("Content-Type", row.kind)
		w := httptest.NewRecorder()
		u.server.ServeHTTP(w, r)
		var p api.Problem
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil || w.Code != http.StatusNotFound || p.Reason != wire.NotFound {
			t.Errorf("%s %s of %d bytes: got %d %q, %v, want 404 %q", row.method, row.kind, len(row.body), w.Code, p.Reason, err, wire.NotFound)
		}
	}
	if asked.Load() > 0 {
		t.Error("the app was asked")
	}
}
