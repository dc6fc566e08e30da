package channelhttp

import (
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/channel"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

func TestTries(t *testing.T) {
	for reason, want := range map[wire.Reason]int{wire.Misdirected: 3, wire.Rekey: 1, wire.Replayed: maxOthers, wire.NotExecuted: 2} {
		n, tries := 0, newRetryBudget()
		for tries.allow(reason) {
			n++
		}
		if n != want {
			t.Errorf("%s: got %d, want %d", reason, n, want)
		}
	}
}

func FuzzHint(f *testing.F) {
	f.Add(421, "00112233445566778899aabbccddeeff, 00112233445566778899aabbccddeefe", "")
	f.Add(428, ",,x", "1795348800000")
	f.Add(412, "", "9223372036854775807")
	f.Add(412, "", "-1")
	f.Fuzz(func(t *testing.T, status int, units, at string) {
		h := hintOf(&http.Response{StatusCode: status, Header: http.Header{wire.FieldUnits: {units}, wire.FieldTime: {at}}})
		var known times
		known.noteTime(wire.UnitID{}, h.Time, noon)
		if got := known.notAfter(wire.UnitID{}, noon, time.Second); got.Before(noon.Add(-wire.MaxClockSkew)) || got.After(noon.Add(wire.MaxClockSkew+channel.MaxAhead)) {
			t.Errorf("a hint of %q moved an end to %v", at, got)
		}
		if len(h.Units) > maxUnits || len(h.Units) > len(units)/32 {
			t.Errorf("got %d units of %d bytes", len(h.Units), len(units))
		}
	})
}

// TestChoose: a call tries all units that the hint lists, and then the unit that opened the
// session, before it tries one of them again.
func TestChoose(t *testing.T) {
	c := newCluster(t, 1, &counted{})
	rt := c.client(c.byTask(), 0)
	testworld.Must(rt.Session(t.Context()))
	opener := c.units[0].ID()
	rt.units = []wire.UnitID{{1}, {2}, {3}}
	var tried []wire.UnitID
	for n := range 12 {
		unit := rt.chooseUnit(rt.active, tried, "")
		if n%4 == 3 != (unit == opener) || slices.Contains(tried[max(0, n-3):], unit) {
			t.Errorf("after %v: got %v, want the unit of %v whose turn was longest ago, or %v each fourth time", tried, unit, rt.units, opener)
		}
		tried = append(tried, unit)
	}
	rt.units = nil
	if got := rt.chooseUnit(rt.active, nil, ""); got != opener {
		t.Errorf("without a hint: got %v, want %v", got, opener)
	}
}

// TestTurns: while no unit responds, only a few of the waiting calls search for one at a
// time. All calls get their responses once a unit is back, and slow responses do not hold
// up other calls.
func TestTurns(t *testing.T) {
	for name, slow := range map[string]time.Duration{"answers at once": 0, "answers slowly": 5 * time.Second} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				const calls, away = 200, 2 * time.Second
				c := newCluster(t, 2, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(slow) }))
				rt := c.client(c.byTask(), 0)
				testworld.Must(say(t, rt, "GET", "/", "opens the session"))
				begin := time.Now()
				var vain atomic.Int64
				c.tampers = func(r *http.Request) (*http.Response, error) {
					if time.Since(begin) > away {
						return nil, nil
					}
					vain.Add(1)
					io.Copy(io.Discard, r.Body)
					return status(http.StatusServiceUnavailable), nil
				}
				var all sync.WaitGroup
				for range calls {
					all.Go(func() {
						if _, err := say(t, rt, "GET", "/", "x"); err != nil {
							t.Error(err)
						}
					})
				}
				all.Wait()
				if got := vain.Load(); got > calls+8*maxProbes {
					t.Errorf("got %d attempts while nobody answered, want at most %d", got, calls+8*maxProbes)
				}
				if took, want := time.Since(begin), away+slow+4*time.Second; took > want {
					t.Errorf("the last answer came after %v, want at most %v", took, want)
				}
			})
		})
	}
}

// TestDecide: an attempt that may have been executed is repeated only where the table's
// rows permit it.
func TestDecide(t *testing.T) {
	for i := range 32 {
		bit := func(n int) bool { return i>>n&1 == 1 }
		a := attempt{Safe: bit(0), Marked: bit(1), Left: bit(2), NotExecuted: bit(3), Whole: bit(4)}
		want := repeatAttempt
		if a.Left && !a.Safe && !a.Marked && !a.NotExecuted {
			want = outcomeUnknown
		} else if !a.Whole {
			want = giveUp
		}
		if got := decide(a); got != want {
			t.Errorf("%+v: got %v, want %v", a, got, want)
		}
	}
	for _, c := range []struct {
		name string
		a    attempt
		want verdict
	}{
		{"nothing known", attempt{}, giveUp},
		{"an unsafe one that left", attempt{Left: true, Whole: true}, outcomeUnknown},
		{"an unsafe one that did not leave", attempt{Whole: true}, repeatAttempt},
		{"an unsafe one the unit did not execute", attempt{Left: true, NotExecuted: true, Whole: true}, repeatAttempt},
		{"a safe one", attempt{Left: true, Safe: true, Whole: true}, repeatAttempt},
		{"a marked one", attempt{Left: true, Marked: true, Whole: true}, repeatAttempt},
		{"a safe one whose content is gone", attempt{Left: true, Safe: true}, giveUp},
	} {
		if got := decide(c.a); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}
