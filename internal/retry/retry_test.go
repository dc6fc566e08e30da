package retry

import (
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld/bubble"
)

func TestBackoff(t *testing.T) {
	b := Backoff{First: 50 * time.Millisecond, Max: 300 * time.Millisecond}
	for failures, want := range map[int]time.Duration{
		math.MinInt: 50, 0: 50, 1: 50, 2: 100, 3: 200, 4: 300, 5: 300, math.MaxInt: 300,
	} {
		want *= time.Millisecond
		if got := b.Longest(failures); got != want {
			t.Errorf("%d failures: got %v, want %v", failures, got, want)
		}
		if low, high := b.Spread(failures, 0), b.Spread(failures, 0.999); low != want/2 || high >= want || high < low {
			t.Errorf("%d failures: got a spread from %v to %v, want from %v to below %v", failures, low, high, want/2, want)
		}
		if wait := b.Wait(failures); wait < want/2 || wait >= want {
			t.Errorf("%d failures: got a wait of %v", failures, wait)
		}
	}
	if got := (Backoff{First: 1, Max: math.MaxInt64}).Longest(math.MaxInt); got <= 0 {
		t.Errorf("after an overflow: got %v", got)
	}
	if got := (Backoff{}).Wait(9); got != 0 {
		t.Errorf("the zero value: got %v, want none", got)
	}
}

func TestSleep(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		begin := time.Now()
		if err := Sleep(t.Context(), time.Minute); err != nil || time.Since(begin) != time.Minute {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := Sleep(ctx, time.Hour); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Minute+time.Second {
			t.Errorf("got %v after %v", err, time.Since(begin))
		}
	})
}
