package channel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"math"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/bhttp"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/unitauth"
	"github.com/cohort-tee/cohort/internal/wire"
)

// ends are values at the ends of ranges that a peer may send as a 64-bit number.
var ends = []uint64{0, 1, 1 << 31, 1<<32 - 1, 1<<63 - 1, 1 << 63, 1<<64 - 2, 1<<64 - 1}

// TestWindowBothEnds gives a window numbers around both ends of 64 bits, three in every order. It
// returns, and accepts no number twice.
func TestWindowBothEnds(t *testing.T) {
	done := make(chan error)
	go func() { done <- windowsAtTheEnds() }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second): // it takes milliseconds, or never returns
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
					if got := w.takeNumber(n); got != want {
						return fmt.Errorf("%d, %d, %d: number %d: got %v, want %v", first, second, third, n, got, want)
					}
					taken[n], newest = true, max(newest, n)
				}
			}
		}
	}
	return nil
}

// TestNumbersAtTheEnds: a client sends requests with numbers and times at both ends of their
// ranges. The unit refuses them or handles them correctly, and serves the next client.
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
		x := testworld.Must(s.newRequest(h.ID(), noon, 0))
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
		if _, err := h.ImportSession(sealed, noon); err == nil || !errors.Is(err, wire.Expired) && !errors.Is(err, wire.SessionOver) {
			t.Errorf("expiry %d: got %v, want a refusal", expiry, err)
		}
	}
	for _, minute := range ends {
		o := testworld.Must(NewClientHandshake(w.byTask(), WantEvidence))
		cookie := append(wire.Uint64(minute), testworld.Must(h.Cookie(o.Request(), noon))[8:]...)
		_, err := h.Accept(OpenRequest{Body: o.Request(), Cookie: cookie, Number: minute}, noon)
		testworld.Refused(t, err, wire.CookieWanted)
	}
	for _, number := range ends {
		o := testworld.Must(NewClientHandshake(w.byTask(), 0))
		a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: number}, noon))
		response, _, err := a.Finish(noEvidence, noon)
		testworld.Must(0, err)
		testworld.Must(o.Finish(response, w.trust(), noon))
	}
	s, _ := w.opened(h, w.byTask())
	testworld.Must(0, brought(h, asked(s, "POST", h.ID(), noon.Add(time.Second)), noon))
}

// TestAnswersAtTheEnds: a unit sends a client times and expiries at both ends of their ranges,
// with valid signatures. The client refuses them.
func TestAnswersAtTheEnds(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	for _, end := range ends {
		for _, field := range []string{"time", "expiry"} {
			o := testworld.Must(NewClientHandshake(w.byTask(), 0))
			a := testworld.Must(h.Accept(OpenRequest{Body: o.Request(), Number: 7}, noon))
			response, _, err := a.Finish(noEvidence, noon)
			testworld.Must(0, err)
			f := testworld.Must(wire.Unframe(wire.LabelSessionResponse, response, 12))
			if field == "time" {
				f[11] = wire.Uint64(end)
				text, ticket := wire.Sum(f[9]), wire.Sum(f[10])
				f[8] = testworld.Must(unitauth.SignFields(h.key, wire.LabelSessionSignature, a.transcript[:], text[:], ticket[:], f[11]))
			} else {
				f[6] = wire.Uint64(end)
			}
			_, err = o.Finish(wire.Frame(wire.LabelSessionResponse, f...), w.trust(), noon)
			if err == nil || !errors.Is(err, wire.ClockSkew) && !errors.Is(err, wire.Malformed) && !errors.Is(err, wire.Expired) {
				t.Errorf("%s %d: got %v, want a refusal", field, end, err)
			}
		}
	}
	for _, ms := range ends {
		if at, err := unitauth.ParseTime(wire.Uint64(ms)); (err == nil) != (ms <= math.MaxInt64) || err == nil && uint64(at.UnixMilli()) != ms {
			t.Errorf("time %d: got %v, %v", ms, at, err)
		}
	}
}

// TestUnboundTakesNoNumber: a request with an unsafe method that is bound to no unit is refused,
// and its number stays unused.
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

// TestMonotonicReadings: a host compares wall times and ignores monotonic readings, so a wall
// clock that was set back is detected.
func TestMonotonicReadings(t *testing.T) {
	h := newWorld(t).host(Limits{})
	later := time.Now().Add(time.Hour)
	h.advanceClock(later)
	if got := h.advanceClock(time.Now()); got.Unix() != later.Unix() {
		t.Errorf("got %v, want %v", got, later)
	}
	if got := h.newest; got != got.Round(0) {
		t.Error("a monotonic reading is kept")
	}
}

// TestTimeWithTheNumber: a unit reads the clock in the step that takes the request's number,
// after it has read the last byte.
func TestTimeWithTheNumber(t *testing.T) {
	w := newWorld(t)
	h := w.host(Limits{})
	s, _ := w.opened(h, w.byTask())
	raw := asked(s, "POST", h.ID(), noon.Add(time.Second))
	x := testworld.Must(h.findSession([wire.HeaderSize]byte(raw), noon))
	slow := io.MultiReader(bytes.NewReader(raw[wire.HeaderSize:len(raw)-1]), readerFunc(func(p []byte) (int, error) {
		w.clock.Advance(2 * time.Second)
		return copy(p, raw[len(raw)-1:]), io.EOF
	}))
	locked := false
	err := x.openFirst(slow, func() (time.Time, error) {
		locked = h.mu.turn.Load() != 0
		return w.clock.Now(), nil
	})
	testworld.Refused(t, err, wire.Expired)
	if !locked {
		t.Error("the time was read outside of the step that takes the number")
	}
}

// TestEarlierReadingLater: of two calls, the one that read the clock first runs last. The later
// time counts, because the session may have been evicted by it.
func TestEarlierReadingLater(t *testing.T) {
	w := newWorld(t)
	a, h := w.host(Limits{}), w.host(Limits{Sessions: 1, Opened: 1})
	s, sealed := w.opened(a, w.byTask())
	_, other := w.opened(a, w.byTask())
	testworld.Must(h.ImportSession(sealed, noon))
	raw := asked(s, "POST", h.ID(), noon.Add(10*time.Second))
	testworld.Must(0, brought(h, raw, noon))
	testworld.Must(h.ImportSession(other, noon.Add(11*time.Second)))
	testworld.Must(h.ImportSession(sealed, noon.Add(9*time.Second)))
	testworld.Refused(t, brought(h, raw, noon.Add(9*time.Second)), wire.Expired)
}

// TestWatch: Watch reports a host as stuck if one call has the lock in 50 checks in a row. It
// does not report a busy host, or one whose process was stopped.
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
			bubble.Test(t, func(t *testing.T) {
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
