package channelhttp

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestOpenedByAnother: the gateway forwards open requests to units outside the pin, such as
// a unit that has left its group but still sends heartbeats. The client tries again, and
// returns the reason if it finds no other unit.
func TestOpenedByAnother(t *testing.T) {
	for strangers, want := range map[int]wire.Reason{openWrongUnits - 1: "", openWrongUnits: wire.WrongIdentity} {
		c := newCluster(t, 1, echo)
		rt := c.client(c.byTask(), 0)
		left := strangers
		c.tampers = func(r *http.Request) (*http.Response, error) {
			if r.URL.Path != wire.PathSession || left == 0 {
				return nil, nil
			}
			left--
			response := testworld.Must(c.route(r))
			f := testworld.Must(wire.Unframe(wire.LabelSessionResponse, testworld.Must(io.ReadAll(response.Body)), 12))
			f[2] = flip(bytes.Clone(f[2]))
			response.Body = io.NopCloser(bytes.NewReader(wire.Frame(wire.LabelSessionResponse, f...)))
			return response, nil
		}
		begin := time.Now()
		_, err := say(t, rt, "GET", "/", "")
		if (err == nil) != (want == "") || err != nil && wire.ReasonOf(err) != want {
			t.Errorf("%d strangers: got %v, want %q", strangers, err, want)
		}
		if took := time.Since(begin); took > time.Second {
			t.Errorf("%d strangers: got an end after %v, want no pause", strangers, took)
		}
	}
}

// TestOpeningThatExpired: an open response whose unit's certificate has expired by the
// client's clock opens no session; the next response does. If every response is too late,
// the client returns the reason.
func TestOpeningThatExpired(t *testing.T) {
	for _, late := range []int64{2, 1 << 30} { // readings of the clock: one response takes two
		bubble.Test(t, func(t *testing.T) {
			c := newCluster(t, 1, echo)
			var looks atomic.Int64
			rt := testworld.Must(NewTransport(TransportConfig{
				Gateway: testworld.Must(url.Parse("http://gateway.example")), Inner: c, Pin: c.byTask(), Trust: c.world,
				Clock: func() time.Time {
					if looks.Add(1) <= late {
						return c.clock.Now().Add(2 * time.Hour)
					}
					return c.clock.Now()
				},
			}))
			defer rt.Close(t.Context())
			_, err := say(t, rt, http.MethodGet, "/", "")
			if late == 2 && err != nil || late > 2 && !errors.Is(err, wire.Expired) {
				t.Errorf("late %d times: got %v", late, err)
			}
		})
	}
}
