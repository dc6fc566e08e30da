package channelhttp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestTimeHintsAtTheEnds: no time in a hint moves the end of an attempt beyond the limit.
func TestTimeHintsAtTheEnds(t *testing.T) {
	for _, ms := range ends {
		response := status(http.StatusPreconditionFailed)
		response.Header.Set(wire.FieldTime, fmt.Sprint(ms))
		var known times
		known.noteTime(wire.UnitID{}, hintOf(response).Time, noon)
		if got := known.notAfter(wire.UnitID{}, noon, time.Second); got.After(noon.Add(channel.MaxAhead)) || got.Before(noon) {
			t.Errorf("hint %d: got %v", ms, got)
		}
	}
}

// TestUnboundAndUnsafe: an unbound request is delivered to every unit. None executes it if
// its method is not safe; a safe request is executed.
func TestUnboundAndUnsafe(t *testing.T) {
	app := &counted{}
	c := newCluster(t, 5, app)
	rt := c.client(c.byTask(), 0)
	s := testworld.Must(rt.Session(t.Context()))
	for method, want := range map[string]int{
		"POST": http.StatusForbidden, "PUT": http.StatusForbidden, "DELETE": http.StatusForbidden, "PATCH": http.StatusForbidden, "get": http.StatusForbidden,
		"GET": http.StatusOK, "HEAD": http.StatusOK, "OPTIONS": http.StatusOK,
	} {
		raw := asked(s, method, wire.UnitID{}, noon.Add(30*time.Second))
		before := app.of("")
		for _, u := range c.units {
			if a := requests(u, raw); a.StatusCode != want {
				t.Errorf("%s: got status %d, want %d", method, a.StatusCode, want)
			}
		}
		if runs := app.of("") - before; (runs > 0) != (want == http.StatusOK) {
			t.Errorf("%s ran %d times at %d units", method, runs, len(c.units))
		}
	}
}

// requests sends a sealed request to a unit.
func requests(u *unit, raw []byte) *http.Response {
	r := testworld.Must(http.NewRequest(http.MethodPost, "http://unit"+wire.PathRequest, bytes.NewReader(raw)))
	r.Header.Set("Content-Type", wire.TypeRequest)
	response := serve(u.server, r)
	io.Copy(io.Discard, response.Body)
	return response
}

// TestBoundOnceUnderClocks: one bound request is delivered repeatedly, with the session's
// ticket, while the host moves its clock forward and back. The unit's clock refuses or is
// right, and the request runs once. The unit serves again when the clock is right again.
func TestBoundOnceUnderClocks(t *testing.T) {
	for name, jumps := range map[string][]time.Duration{
		"an hour on and back":        {time.Hour + time.Second, 0},
		"a day on and back":          {25 * time.Hour, 0},
		"back by an hour":            {-time.Hour, 0},
		"to and fro within what may": {time.Minute, -time.Minute, 90 * time.Second, 0},
	} {
		t.Run(name, func(t *testing.T) {
			app := &counted{}
			c := newCluster(t, 1, app)
			var jump time.Duration // of the wall clock against the unit's time
			u := c.units[0]
			u.server.config.Clock = func() (time.Time, error) {
				if jump.Abs() > wire.MaxClockJump {
					return time.Time{}, wire.Refuse(wire.ClockSkew, "unit: wall clock", jump, wire.MaxClockJump)
				}
				return c.clock.Now(), nil
			}
			s, sealed := c.opened(u.Host, c.byTask())
			raw := asked(s, "POST", u.ID(), noon.Add(30*time.Second))
			statuses := []int{requests(u, raw).StatusCode}
			for _, jump = range jumps {
				statuses = append(statuses, requests(u, raw).StatusCode)
				if at, err := u.server.config.Clock(); err == nil {
					u.ImportSession(sealed, at)
					u.Stats(at)
				} else if got := opens(u, testworld.Must(channel.NewClientHandshake(c.byTask(), 0)).Request(), nil).StatusCode; got != http.StatusServiceUnavailable {
					t.Errorf("while the clock is wrong: an open got status %d", got)
				}
				c.clock.Advance(time.Second)
			}
			if app.of("") != 1 {
				t.Errorf("ran %d times, statuses %v", app.of(""), statuses)
			}
			if got := requests(u, asked(s, "POST", u.ID(), noon.Add(time.Minute))).StatusCode; got != http.StatusOK {
				t.Errorf("the next request: got status %d", got)
			}
		})
	}
}

// TestSkewedClients: clients with wrong clocks call units whose clocks differ from one
// another. Up to 5 minutes everything works; beyond that the client refuses with
// clock-skew.
func TestSkewedClients(t *testing.T) {
	for _, off := range []time.Duration{0, 20 * time.Second, 35 * time.Second, time.Minute, 4 * time.Minute, 4*time.Minute + 50*time.Second, 6 * time.Minute, time.Hour} {
		for _, sign := range []time.Duration{1, -1} {
			t.Run(fmt.Sprint(sign*off), func(t *testing.T) {
				bubble.Test(t, func(t *testing.T) {
					c := newCluster(t, 3, echo)
					for i, u := range c.units {
						apart := time.Duration(i) * 5 * time.Second
						u.server.config.Clock = func() (time.Time, error) { return c.clock.Now().Add(apart), nil }
					}
					rt := testworld.Must(NewTransport(TransportConfig{Gateway: noGateway, Inner: c, Pin: c.byTask(), Trust: c.world,
						Clock: func() time.Time { return c.clock.Now().Add(sign * off) }}))
					defer rt.Close(context.Background())
					if off > 5*time.Minute {
						_, err := rt.Session(t.Context())
						if !errors.Is(err, wire.ClockSkew) && !(sign > 0 && errors.Is(err, wire.Expired)) { // or the certificate has expired by that clock
							t.Errorf("got %v, want %v", err, wire.ClockSkew)
						}
						return
					}
					for i := range 12 {
						for _, method := range []string{"GET", "POST"} {
							if _, err := say(t, rt, method, "/", "x"); err != nil {
								t.Errorf("call %d, %s: %v", i, method, err)
							}
						}
					}
					if rt.Opens() != 1 || c.outer > 25 {
						t.Errorf("got %d sessions and %d outer requests, want 1 and one for each call", rt.Opens(), c.outer)
					}
				})
			})
		}
	}
}

// TestTimeHints: a hint changes the end of attempts, by at most 5 minutes, but not whether
// an attempt may be repeated.
func TestTimeHints(t *testing.T) {
	for name, hint := range map[string]string{
		"none": "", "no number": "noon", "negative": "-1", "of 1970": "0", "of the last day": "9223372036854775807",
		"an hour ahead": fmt.Sprint(noon.Add(time.Hour).UnixMilli()), "right": fmt.Sprint(noon.UnixMilli()),
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				c := newCluster(t, 1, echo)
				rt := c.client(c.byTask(), 0)
				testworld.Must(say(t, rt, "GET", "/", ""))
				sent := 0
				c.tampers = func(r *http.Request) (*http.Response, error) {
					if r.URL.Path != wire.PathRequest {
						return nil, nil
					}
					io.Copy(io.Discard, r.Body)
					sent++
					response := status(http.StatusPreconditionFailed)
					response.Header.Set(wire.FieldTime, hint)
					return response, nil
				}
				_, err := say(t, rt, "GET", "/", "")
				want := wire.Expired
				if name == "an hour ahead" || name == "of 1970" || name == "of the last day" {
					want = wire.ClockSkew
				}
				testworld.Refused(t, err, want)
				if sent != 3 {
					t.Errorf("got %d attempts of a safe call, want 3", sent)
				}
				_, err = say(t, rt, "POST", "/", "x")
				testworld.Refused(t, err, wire.OutcomeUnknown)
				if sent != 4 {
					t.Errorf("got %d attempts, want one more of a call that is not safe", sent)
				}
				c.tampers = nil
				if _, err := say(t, rt, "POST", "/", "x"); err != nil {
					t.Errorf("the next call: %v", err)
				}
			})
		})
	}
}

// TestClientSleeps: the machine of a client sleeps, so no timer of the client runs, while units renew
// their certificates and have new ring keys. The first request afterwards waits for another session,
// and each request is executed once, also if it may not be repeated.
func TestClientSleeps(t *testing.T) {
	for _, slept := range []time.Duration{time.Hour, 25 * time.Hour} {
		for _, first := range []string{"GET", "POST"} {
			t.Run(fmt.Sprint(slept, ", then ", first), func(t *testing.T) {
				bubble.Test(t, func(t *testing.T) {
					c := newCluster(t, 3, echo)
					rt := testworld.Must(NewTransport(TransportConfig{Gateway: noGateway, Inner: c, Pin: c.byTask(), Trust: c.world, Clock: c.clock.Now}))
					defer rt.Close(context.Background())
					testworld.Must(say(t, rt, "POST", "/", "x"))
					c.clock.Advance(slept)
					c.drawRings()
					for _, u := range c.units {
						c.renewed(u.Host, "1")
					}
					before := c.outer
					for _, method := range []string{first, "GET", "POST"} {
						testworld.Must(say(t, rt, method, "/", "x"))
					}
					if rt.Opens() != 2 || c.outer-before > 4 {
						t.Errorf("got %d sessions and %d outer requests after the sleep, want 2, and 1 beside one for each call", rt.Opens(), c.outer-before)
					}
				})
			})
		}
	}
}
