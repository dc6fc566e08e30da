package channel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"math"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ends are what a peer may choose for a number of 64 bits.
var ends = []uint64{0, 1, 1 << 31, 1<<32 - 1, 1<<63 - 1, 1 << 63, 1<<64 - 2, 1<<64 - 1}

// TestWindowBothEnds brings numbers around both ends of 64 bits to a window, in every
// order of three: it returns, and takes no number twice.
func TestWindowBothEnds(t *testing.T) {
	done := make(chan error)
	go func() { done <- windowsAtTheEnds() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second): // it takes milliseconds, or for ever
		t.Fatal("a window does not return")
	}
}

func windowsAtTheEnds() error {
	var numbers []uint64
	for _, end := range ends {
		for _, by := range []uint64{0, 1, 63, 64, windowSize - 1, windowSize, windowSize + 1} {
			numbers = append(numbers, end+by, end-by)
		}
	}
	for _, first := range numbers {
		for _, second := range numbers {
			for _, third := range []uint64{first, second, 1<<64 - 1, 1 << 63} {
				var w window
				taken := map[uint64]bool{}
				newest := uint64(0)
				for _, n := range []uint64{first, second, third} {
					want := !taken[n] && (n > newest || newest-n < windowSize)
					if got := w.take(n); got != want {
						return fmt.Errorf("%d, %d, %d: number %d: got %v, want %v", first, second, third, n, got, want)
					}
					taken[n], newest = true, max(newest, n)
				}
			}
		}
	}
	return nil
}

// TestNumbersAtTheEnds sends a unit, as a client may, requests with every number
// and end at the ends of their ranges: it refuses them or is right, and serves the
// next client.
func TestNumbersAtTheEnds(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	for _, number := range ends {
		s, _ := w.opened(h, w.byTask())
		s.number = number - 1
		err := brought(h, asked(s, "POST", h.ID(), noon.Add(time.Second)), noon)
		if number == 0 || number > math.MaxInt64 {
			testworld.Refused(t, err, wire.Malformed)
		} else if err != nil {
			t.Errorf("number %d: %v", number, err)
		}
	}
	for _, end := range ends {
		s, _ := w.opened(h, w.byTask())
		x := testworld.Must(s.begin(h.ID(), noon, 0))
		copy(x.raw[49:], wire.Uint64(end))
		raw := testworld.Must(x.Whole(bhttp.Head{Method: "POST", Scheme: "https", Path: "/"}, nil))
		want := wire.Expired
		if end > math.MaxInt64 {
			want = wire.Malformed
		}
		testworld.Refused(t, brought(h, raw, noon), want)
		if h.table.byID[s.id].window != (window{}) {
			t.Errorf("end %d: the number of a request that was refused is taken", end)
		}
	}
	for _, expiry := range ends {
		sealed := sealAs(w, h, func(s *session, b *envelope.Header, _ *ring) { s.id[0], b.Session[0], b.Expiry = 1, 1, expiry })
		if _, err := h.Join(sealed, noon); err == nil || !errors.Is(err, wire.Expired) && !errors.Is(err, wire.SessionOver) {
			t.Errorf("expiry %d: got %v, want a refusal", expiry, err)
		}
	}
	for _, minute := range ends {
		o := testworld.Must(NewOpening(w.byTask(), WantEvidence))
		cookie := append(wire.Uint64(minute), testworld.Must(h.Cookie(o.Request(), noon))[8:]...)
		_, err := h.Accept(OpenRequest{Body: o.Request(), Cookie: cookie, Number: minute}, noon)
		testworld.Refused(t, err, wire.CookieWanted)
	}
	for _, number := range ends {
		o := testworld.Must(NewOpening(w.byTask(), 0))
		a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: number}, noon))
		answer, _, err := a.Finish(noEvidence, noon)
		testworld.Must(0, err)
		testworld.Must(o.Finish(answer, w.trust(), noon))
	}
	s, _ := w.opened(h, w.byTask())
	testworld.Must(0, brought(h, asked(s, "POST", h.ID(), noon.Add(time.Second)), noon))
}

// TestAnswersAtTheEnds is the same for what a unit may choose towards a client: its
// time and its expiry, with every signature right.
func TestAnswersAtTheEnds(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	for _, end := range ends {
		for _, field := range []string{"time", "expiry"} {
			o := testworld.Must(NewOpening(w.byTask(), 0))
			a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, noon))
			answer, _, err := a.Finish(noEvidence, noon)
			testworld.Must(0, err)
			f := testworld.Must(wire.Unframe(wire.LabelSessionAnswer, answer, 12))
			if field == "time" {
				f[11] = wire.Uint64(end)
				text, ticket := wire.Sum(f[9]), wire.Sum(f[10])
				f[8] = testworld.Must(sign(h.key, wire.LabelSessionSignature, a.transcript[:], text[:], ticket[:], f[11]))
			} else {
				f[6] = wire.Uint64(end)
			}
			_, err = o.Finish(wire.Frame(wire.LabelSessionAnswer, f...), w.trust(), noon)
			if err == nil || !errors.Is(err, wire.ClockSkew) && !errors.Is(err, wire.Malformed) && !errors.Is(err, wire.Expired) {
				t.Errorf("%s %d: got %v, want a refusal", field, end, err)
			}
		}
	}
	for _, ms := range ends {
		if at, err := parseTime(wire.Uint64(ms)); (err == nil) != (ms <= math.MaxInt64) || err == nil && uint64(at.UnixMilli()) != ms {
			t.Errorf("time %d: got %v, %v", ms, at, err)
		}
	}
}

// TestTimeHintsAtTheEnds: no time in a hint moves the end of an attempt too far.
func TestTimeHintsAtTheEnds(t *testing.T) {
	for _, ms := range ends {
		answer := status(http.StatusPreconditionFailed)
		answer.Header.Set(wire.FieldTime, fmt.Sprint(ms))
		var known times
		known.heard(wire.UnitID{}, hintOf(answer).Time, noon)
		if got := known.notAfter(wire.UnitID{}, noon, time.Second); got.After(noon.Add(MaxAhead)) || got.Before(noon) {
			t.Errorf("hint %d: got %v", ms, got)
		}
	}
}

// TestUnboundAndUnsafe gives an unbound request whose method is not safe to every
// unit: none executes it. A safe one is.
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

// TestUnboundTakesNoNumber: the number of a request that is refused, because it is not
// safe and bound to no unit, is not taken.
func TestUnboundTakesNoNumber(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	for _, method := range []string{"POST", "PUT", "DELETE", "PATCH", "get"} {
		testworld.Refused(t, brought(h, asked(s, method, wire.UnitID{}, noon.Add(30*time.Second)), noon), wire.NotAllowed)
		if h.table.byID[s.ID()].latest > 0 {
			t.Errorf("%s: the number of a request that was refused is taken", method)
		}
	}
}

// requests sends a sealed request to a unit.
func requests(u *unit, raw []byte) *http.Response {
	r := testworld.Must(http.NewRequest(http.MethodPost, "http://unit"+wire.PathRequest, bytes.NewReader(raw)))
	r.Header.Set("Content-Type", wire.TypeRequest)
	answer := serve(u.server, r)
	io.Copy(io.Discard, answer.Body)
	return answer
}

// TestBoundOnceUnderClocks delivers one bound request again and again, with its
// ticket, while the host moves its clock on, back, and looks at the unit between:
// the unit's clock refuses or is right, and the request runs once. The unit serves
// on when the clock is right again.
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
			var jump time.Duration // of the wall clock, beside the unit's time
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
					u.Join(sealed, at)
					u.Stats(at)
				} else if got := opens(u, testworld.Must(NewOpening(c.byTask(), 0)).Request(), nil).StatusCode; got != http.StatusServiceUnavailable {
					t.Errorf("while the clock is wrong: an open got status %d", got)
				}
				c.clock.Pass(time.Second)
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

// TestMonotonicReadings: a host whose times have a monotonic reading beside a wall
// clock that was set back compares what it shows, not what is behind it.
func TestMonotonicReadings(t *testing.T) {
	h := newWorld(t).host(Limits{})
	later := time.Now().Add(time.Hour)
	h.at(later)
	if got := h.at(time.Now()); got.Unix() != later.Unix() {
		t.Errorf("got %v, want %v", got, later)
	}
	if got := h.newest; got != got.Round(0) {
		t.Error("a monotonic reading is kept")
	}
}

// TestTimeWithTheNumber: what decides about a request reads the time in the step
// that takes the number, after its last byte was read.
func TestTimeWithTheNumber(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	raw := asked(s, "POST", h.ID(), noon.Add(time.Second))
	x := testworld.Must(h.begin([wire.HeaderSize]byte(raw), noon))
	slow := io.MultiReader(bytes.NewReader(raw[wire.HeaderSize:len(raw)-1]), readerFunc(func(p []byte) (int, error) {
		w.clock.Pass(2 * time.Second)
		return copy(p, raw[len(raw)-1:]), io.EOF
	}))
	locked := false
	err := x.open(slow, func() (time.Time, error) {
		locked = h.mu.turn.Load() != 0
		return w.clock.Now(), nil
	})
	testworld.Refused(t, err, wire.Expired)
	if !locked {
		t.Error("the time was read outside of the step that takes the number")
	}
}

// TestEarlierReadingLater: of two calls, the one that read the clock first comes
// last: the other's time counts, by which the entry may have yielded.
func TestEarlierReadingLater(t *testing.T) {
	w := newWorld(t)
	a, h := w.host(Limits{}), w.host(Limits{Sessions: 1, Opened: 1})
	s, sealed := w.opened(a, w.byTask())
	_, other := w.opened(a, w.byTask())
	testworld.Must(h.Join(sealed, noon))
	raw := asked(s, "POST", h.ID(), noon.Add(10*time.Second))
	testworld.Must(0, brought(h, raw, noon))
	testworld.Must(h.Join(other, noon.Add(11*time.Second)))
	testworld.Must(h.Join(sealed, noon.Add(9*time.Second)))
	testworld.Refused(t, brought(h, raw, noon.Add(9*time.Second)), wire.Expired)
}

// TestSkewedClients runs clients whose clocks are off, against units that are
// apart from one another: up to 5 minutes all works, beyond them it is "clock".
func TestSkewedClients(t *testing.T) {
	for _, off := range []time.Duration{0, 20 * time.Second, 35 * time.Second, time.Minute, 4 * time.Minute, 4*time.Minute + 50*time.Second, 6 * time.Minute, time.Hour} {
		for _, sign := range []time.Duration{1, -1} {
			t.Run(fmt.Sprint(sign*off), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
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
						if !errors.Is(err, wire.ClockSkew) && !(sign > 0 && errors.Is(err, wire.Expired)) { // or the certificate is over by that clock
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

// TestTimeHints: a hint selects the end of attempts, within 5 minutes, and not
// whether one may be repeated.
func TestTimeHints(t *testing.T) {
	for name, hint := range map[string]string{
		"none": "", "no number": "noon", "negative": "-1", "of 1970": "0", "of the last day": "9223372036854775807",
		"an hour ahead": fmt.Sprint(noon.Add(time.Hour).UnixMilli()), "right": fmt.Sprint(noon.UnixMilli()),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
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
					answer := status(http.StatusPreconditionFailed)
					answer.Header.Set(wire.FieldTime, hint)
					return answer, nil
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

// TestWatch: a host that one call holds at 50 looks in a row is stuck; a busy one,
// and one whose process stood still, is not.
func TestWatch(t *testing.T) {
	for name, c := range map[string]struct {
		holds func(h *Host)
		ends  time.Duration
	}{
		"held for good":      {func(h *Host) { h.mu.Lock() }, 50 * watchEach},
		"held for 4 seconds": {func(h *Host) { h.mu.Lock(); time.AfterFunc(4*time.Second, h.mu.Unlock) }, 0},
		"held again and again": {func(h *Host) {
			h.mu.Lock()
			for i := range 20 {
				time.AfterFunc(time.Duration(i+1)*time.Second, func() { h.mu.Unlock(); h.mu.Lock() })
			}
			time.AfterFunc(21*time.Second, h.mu.Unlock)
		}, 0},
		"free": {func(*Host) {}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := &Host{}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				begin := time.Now()
				go c.holds(h)
				err := h.Watch(ctx)
				if took := time.Since(begin); c.ends > 0 && (err == nil || took > c.ends+2*watchEach) || c.ends == 0 && err != nil {
					t.Errorf("after %v: %v, want an end after %v", took, err, c.ends)
				}
			})
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
