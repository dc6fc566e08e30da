package unit

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/history"
	"github.com/cohort-tee/cohort/internal/hostclock"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/unit/unittest"
)

// TestBackOff: an authority that does not respond causes one warning for each retry, and
// the pauses between retries double from 50 ms to 5 s.
func TestBackOff(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		u, err := prepare(Config{
			Authorities: []string{"https://127.0.0.1:1"}, Genesis: attest.Digest{1}, Task: "scoring",
			Attester: attesttest.NewVendor().Chip().Attester(attesttest.Measure("scoring")),
			Log:      slog.New(slog.NewTextHandler(&log, nil)),
		})
		testworld.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		err = u.obtain(ctx, isFinal)
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("got %v, want the deadline", err)
		}
		waits := regexp.MustCompile(`level=WARN .*retry_in=(\S+)`).FindAllStringSubmatch(log.String(), -1)
		if uint64(len(waits)) != u.Stats().Failures {
			t.Errorf("got %d warnings of %d failures", len(waits), u.Stats().Failures)
		}
		step := 50 * time.Millisecond
		for _, match := range waits {
			wait, err := time.ParseDuration(match[1])
			testworld.NoError(t, err)
			if wait < step/2 || wait > step {
				t.Errorf("got a wait of %v, want %v to %v", wait, step/2, step)
			}
			step = min(2*step, 5*time.Second)
		}
	})
}

func TestFinal(t *testing.T) {
	for reason, want := range map[wire.Reason]bool{
		wire.Behind: false, wire.Unavailable: false, wire.TooMany: false, wire.StoreFailed: false, wire.Internal: false,
		wire.NotMeasured: true, wire.WrongRoot: true, wire.WrongGenesis: true, wire.ClockSkew: true, wire.NotFound: true,
	} {
		if got := isFinal(wire.Refuse(reason, "a rule", "", "")); got != want {
			t.Errorf("%s: got final %v, want %v", reason, got, want)
		}
	}
	if isFinal(errors.New("connection refused")) {
		t.Error("an error of the network is final")
	}
}

// TestStartWaits: Start tries again at a busy authority.
func TestStartWaits(t *testing.T) {
	w := unittest.New(t, "1h")
	f := w.Authority(w.AuthorityKeys)
	f.Faults.Refusal = wire.Refuse(wire.TooMany, "requests", "", "")
	timer := time.AfterFunc(100*time.Millisecond, func() { f.Set(func(f *unittest.Authority) { f.Faults.Refusal = nil }) })
	defer timer.Stop()
	u := started(w, "scoring", f)
	if got := u.Stats(); got.Failures == 0 || got.LastFailure != wire.TooMany {
		t.Errorf("got %+v, want failures by %q", got, wire.TooMany)
	}
}

// idle returns a unit that has no policy yet, with a clock.
func idle(c *hostclock.Clock) *Unit {
	u := &Unit{clock: c}
	u.seen.Store(&history.History{})
	u.steps.moved = make(chan struct{})
	return u
}

// TestAwaitRenewal: a renewal happens at a random time between renewAfter and renewBefore,
// and never at once, however late it is.
func TestAwaitRenewal(t *testing.T) {
	for _, row := range []struct {
		name     string
		due      time.Duration // renewAfter, relative to now
		min, max time.Duration
	}{
		{"due later", 40 * time.Minute, 40 * time.Minute, 45 * time.Minute},
		{"long overdue", -time.Hour, 150 * time.Second, 150 * time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				u := idle(hostclock.New(bubbleClock))
				after := time.Now().Add(row.due)
				u.enrolled.Store(&enrolment{renewAfter: after, renewBefore: after.Add(5 * time.Minute)})
				begin := time.Now()
				testworld.NoError(t, u.awaitRenewal(t.Context()))
				if got := time.Since(begin); got < row.min || got > row.max {
					t.Errorf("got %v, want %v to %v", got, row.min, row.max)
				}
			})
		})
	}
}

// TestAwaitRenewalAfterSleep: the clock advances while timers stand still. The unit notices
// within a minute.
func TestAwaitRenewalAfterSleep(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var slept atomic.Int64
		u := idle(hostclock.New(func() (time.Time, time.Duration) {
			wall, elapsed := bubbleClock()
			return wall.Add(time.Duration(slept.Load())), elapsed + time.Duration(slept.Load())
		}))
		after := time.Now().Add(10 * time.Hour)
		u.enrolled.Store(&enrolment{renewAfter: after, renewBefore: after})
		time.AfterFunc(10*time.Minute, func() { slept.Store(int64(10 * time.Hour)) })
		begin := time.Now()
		testworld.NoError(t, u.awaitRenewal(t.Context()))
		if got := time.Since(begin); got > 11*time.Minute {
			t.Errorf("got %v, want at most a minute more than 10", got)
		}
	})
}

// TestAuthorityAway: while the authority is down, the unit stays ready until its
// certificate's end and has expired after it. It becomes ready again when the authority is
// back.
func TestAuthorityAway(t *testing.T) {
	t.Parallel()
	w := unittest.New(t, "3s")
	f := w.Authority(w.AuthorityKeys)
	u := started(w, "scoring", f)
	f.Set(func(f *unittest.Authority) { f.Faults.Serve = unittest.Unavailable{} })
	end := u.Stats().NotAfter
	for time.Now().Before(end.Add(-50 * time.Millisecond)) {
		if err := u.Ready(); err != nil && time.Now().Before(end) {
			t.Fatalf("%v before the certificate's end: %v", time.Until(end), err)
		}
		time.Sleep(20 * time.Millisecond)
		if now := u.Stats().NotAfter; now != end {
			end = now // a renewal that was in progress
		}
	}
	time.Sleep(time.Until(end) + 20*time.Millisecond)
	testworld.Refused(t, u.Ready(), wire.CertExpired)
	if _, err := u.ClientTLS("keys"); wire.ReasonOf(err) != wire.CertExpired {
		t.Errorf("got %v, want no calls with an expired certificate", err)
	}
	f.Set(func(f *unittest.Authority) { f.Faults.Serve = nil })
	testworld.Within(t, 10*time.Second, "the unit is ready again", func() bool { return u.Ready() == nil })
	if got := u.Stats(); got.LastFailure != wire.Unavailable {
		t.Errorf("got last failure %q, want %q", got.LastFailure, wire.Unavailable)
	}
}
