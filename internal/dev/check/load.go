package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/retry"
)

const (
	RestartTime = 15 * time.Second // within this time a killed unit is back
	SettleTime  = time.Second      // duration of load before the kill and after the restart
)

// KillUnit kills a unit. The function back waits until a new unit serves at its address, and
// returns the new unit's id.
func (c Checker) KillUnit(ctx context.Context, u dev.Unit) (back func() (string, error), err error) {
	before, err := c.Issued(ctx)
	if err != nil {
		return nil, err
	}
	if pid := c.UnitPID(u); pid <= 1 {
		err = errors.New("no process id")
	} else {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		return nil, fmt.Errorf("killing unit %s: %w", u.Address, err)
	}
	return func() (string, error) { return c.comesBack(ctx, u.Address, before) }, nil
}

// comesBack waits until a unit that is not in before has a certificate, and a TLS handshake with
// the address succeeds.
func (c Checker) comesBack(ctx context.Context, address string, before map[string]bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, RestartTime)
	defer cancel()
	config, err := c.Plain()
	if err != nil {
		return "", err
	}
	for {
		id, err := c.newcomerAmong(ctx, before)
		if err == nil {
			if _, err = dev.Handshake(ctx, address, config); err == nil {
				return id, nil
			}
		}
		if retry.Sleep(ctx, 50*time.Millisecond) != nil {
			return "", fmt.Errorf("unit %s was killed and is not back within %v: %w", address, RestartTime, err)
		}
	}
}

// newcomerAmong returns a unit with a certificate that is not in before.
func (c Checker) newcomerAmong(ctx context.Context, before map[string]bool) (string, error) {
	now, err := c.Issued(ctx)
	if err != nil {
		return "", err
	}
	for id := range now {
		if !before[id] {
			return id, nil
		}
	}
	return "", errors.New("no other unit was given a certificate")
}

// Issued returns the ids of the units in the newest log entries of issued certificates for the
// task.
func (c Checker) Issued(ctx context.Context) (map[string]bool, error) {
	a, err := authorityclient.Dial(ctx, c.App, c.ClientPins())
	if err != nil {
		return nil, err
	}
	defer a.Close()
	log, err := a.IssuanceLog(ctx, api.LogQuery{Task: c.Cluster.Task})
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, e := range log.Entries {
		if e.Kind == "issued" {
			ids[e.Unit] = true
		}
	}
	return ids, nil
}

// RequestOnce sends one request and reads the whole response.
func RequestOnce(ctx context.Context, through http.RoundTripper, url string) error {
	ctx, cancel := context.WithTimeout(ctx, StepTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := through.RoundTrip(r)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode >= http.StatusInternalServerError {
		return errors.New(response.Status)
	}
	_, err = io.Copy(io.Discard, response.Body)
	return err
}
