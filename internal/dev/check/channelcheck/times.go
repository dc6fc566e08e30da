package channelcheck

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// stopTime is the duration of a unit's SIGSTOP: longer than a watchdog that measures time would
// wait before it ends the unit.
const stopTime = 6 * time.Second

// EveryNumber checks that units serve or refuse requests with numbers and expiries at the limits
// of their ranges. It also checks that a unit whose process is stopped for a while, as during a
// migration of its host, continues as the same unit.
func EveryNumber(ctx context.Context, c check.Checker) (string, error) {
	s, err := newStranger(ctx, c)
	if err != nil {
		return "", err
	}
	defer s.close()
	ends := []uint64{0, 1, 1 << 31, 1<<32 - 1, math.MaxInt64, 1 << 63, 1<<64 - 2, 1<<64 - 1}
	sent := 0
	for _, u := range s.at {
		for i, end := range ends {
			want := http.StatusOK
			if end == 0 || end > math.MaxInt64 {
				want = http.StatusBadRequest
			}
			late := http.StatusPreconditionFailed
			if end > math.MaxInt64 {
				late = http.StatusBadRequest
			}
			for _, step := range []struct {
				q    requestClaims
				want int
			}{
				{requestClaims{method: http.MethodGet, number: end, target: s.units[u.Address], end: expiryIn(time.Minute)}, want},
				{requestClaims{method: http.MethodGet, number: uint64(1000 + i), target: s.units[u.Address], end: end}, late},
			} {
				sent++
				if got, _, err := s.sendRequest(ctx, u, step.q); err != nil || got != step.want {
					return "", fmt.Errorf("unit %s: number %d, end %d: got status %d, %v, want %d", u.Address, step.q.number, step.q.end, got, err, step.want)
				}
			}
		}
	}
	if err := checkServed(ctx, c, s); err != nil {
		return "", err
	}
	_, err = c.AnyReplica(ctx)
	return fmt.Sprintf("%d requests with numbers and ends up to 2^64-1 refused or served by %d units; one stopped for %v is the same still", sent, len(s.at), stopTime), err
}

// checkServed stops a unit's process for stopTime, and returns an error unless the unit then has
// the same id.
func checkServed(ctx context.Context, c check.Checker, s *stranger) error {
	u := s.at[len(s.at)-1]
	pid := c.UnitPID(u)
	if pid <= 1 {
		return fmt.Errorf("unit %s has no process id", u.Address)
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("stopping unit %s: %w", u.Address, err)
	}
	_ = retry.Sleep(ctx, stopTime)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		return fmt.Errorf("continuing unit %s: %w", u.Address, err)
	}
	_ = retry.Sleep(ctx, check.SettleTime)
	id, err := check.UnitAt(ctx, u)
	if err != nil || id != s.units[u.Address] {
		return fmt.Errorf("unit %s was stopped for %v: got unit %s, %w, want %s still", u.Address, stopTime, id, err, s.units[u.Address])
	}
	return nil
}

// OnceInTime checks requests with methods that are not safe. A bound request is executed once,
// only by its unit; an unbound one is refused. A request that has expired or expires too far in
// the future is refused by the unit's clock, and the response contains the unit's time.
func OnceInTime(ctx context.Context, c check.Checker) (string, error) {
	s, err := newStranger(ctx, c)
	if err != nil {
		return "", err
	}
	defer s.close()
	number := uint64(0)
	expect := func(u dev.Unit, q requestClaims, want int, what string) (int64, error) {
		got, at, err := s.sendRequest(ctx, u, q)
		if err != nil || got != want {
			return at, fmt.Errorf("unit %s: %s: got status %d, %v, want %d", u.Address, what, got, err, want)
		}
		return at, nil
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch} {
		number++
		for _, u := range s.at {
			if _, err := expect(u, requestClaims{method: method, number: number, end: expiryIn(30 * time.Second)}, http.StatusForbidden, method+", bound to no unit"); err != nil {
				return "", err
			}
		}
	}
	for _, bound := range s.at {
		number++
		q := requestClaims{method: http.MethodPost, number: number, target: s.units[bound.Address], end: expiryIn(30 * time.Second)}
		if _, err := expect(bound, q, http.StatusOK, "a bound POST"); err != nil {
			return "", err
		}
		for _, u := range s.at {
			want, what := http.StatusConflict, "the same again"
			if u.Address != bound.Address {
				want, what = http.StatusMisdirectedRequest, "the same at another unit"
			}
			for range 3 {
				if _, err := expect(u, q, want, what); err != nil {
					return "", err
				}
			}
		}
		for _, off := range []time.Duration{-time.Hour, -time.Second, 3 * time.Minute, 50 * time.Minute, 25 * time.Hour} {
			number++
			at, err := expect(bound, requestClaims{method: http.MethodPost, number: number, target: s.units[bound.Address], end: expiryIn(off)}, http.StatusPreconditionFailed, "an end "+off.String()+" ahead")
			if err != nil {
				return "", err
			}
			if skew := time.Until(time.UnixMilli(at)); skew.Abs() > wire.MaxClockSkew {
				return "", fmt.Errorf("unit %s: its time beside the refusal is %v off", bound.Address, skew)
			}
		}
	}
	return fmt.Sprintf("POST, PUT, DELETE and PATCH bound to no unit refused by %d; bound ones run once, 4 times delivered; late and far ends refused", len(s.at)), nil
}
