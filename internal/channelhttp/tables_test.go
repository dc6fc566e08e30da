package channelhttp

import (
	"bytes"
	"encoding/base64"
	"io"
	"net/http"
	"testing"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestOpensSentAgain: one captured open request is sent many more times than the table has
// room for. It opens one session at each unit, and users are still served.
func TestOpensSentAgain(t *testing.T) {
	c := newCluster(t, 0, echo)
	c.limit = channel.Limits{Sessions: 40, Opened: 10}
	for range 2 {
		c.start()
	}
	captured := testworld.Must(channel.NewClientHandshake(c.byTask(), 0)).Request()
	statuses := map[int]int{}
	for range 100 {
		for _, u := range c.units {
			statuses[opens(u, captured, nil).StatusCode]++
		}
	}
	if statuses[http.StatusOK] != len(c.units) || statuses[http.StatusConflict] != 99*len(c.units) {
		t.Errorf("got statuses %v, want one session at each unit, else %d", statuses, http.StatusConflict)
	}
	for range 100 { // each with its own key
		for _, u := range c.units {
			opens(u, testworld.Must(channel.NewClientHandshake(c.byTask(), 0)).Request(), nil)
		}
	}
	if _, err := say(t, c.client(c.byTask(), 0), "POST", "/", "x"); err != nil {
		t.Errorf("a user: %v", err)
	}
	if got := c.units[0].Stats(noon); got.Opened > 10 || got.Sessions > 40 {
		t.Errorf("got %+v, want at most 40 sessions, of those 10 opened here", got)
	}
}

// opens sends an open request to a unit.
func opens(u *unit, body, cookie []byte) *http.Response {
	r := testworld.Must(http.NewRequest(http.MethodPost, "http://unit"+wire.PathSession, bytes.NewReader(body)))
	r.Header.Set("Content-Type", wire.TypeSession)
	if cookie != nil {
		r.Header.Set(wire.FieldCookie, base64.RawURLEncoding.EncodeToString(cookie))
	}
	response := serve(u.server, r)
	io.Copy(io.Discard, response.Body)
	return response
}
