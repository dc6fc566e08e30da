package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
)

const (
	callers   = 4                     // of the load
	callPause = 20 * time.Millisecond // of each caller, between two requests
)

const (
	restartTime = 15 * time.Second // a killed unit is back within this
	settleTime  = time.Second      // of load before the kill and after the restart
)

// killAndRestart: one unit is killed under load through the client. No request
// fails, and the unit comes back on its address as another unit.
func (c checker) killAndRestart(ctx context.Context) (string, error) {
	t, err := c.trust(ctx)
	if err != nil {
		return "", err
	}
	config := client.Config{Trust: t, ServerName: c.cluster.ServerName}
	for _, u := range c.cluster.Units {
		config.Addresses = append(config.Addresses, u.Address)
	}
	through, err := client.New(config)
	if err != nil {
		return "", err
	}
	defer through.Close()
	load := startLoad(ctx, through, "https://"+c.cluster.ServerName+"/")
	detail, err := c.killOne(ctx)
	if failed := load.stop(); err == nil && failed != nil {
		err = failed
	}
	return fmt.Sprintf("%d requests, 0 failed; %s", load.sent.Load(), detail), err
}

// killOne kills the last unit and waits until it is back.
func (c checker) killOne(ctx context.Context) (string, error) {
	victim := c.cluster.Units[len(c.cluster.Units)-1]
	pause(ctx, settleTime)
	killed := c.app.now()
	back, err := c.kill(ctx, victim)
	if err != nil {
		return "", err
	}
	id, err := back()
	took := c.app.now().Sub(killed).Round(time.Millisecond)
	pause(ctx, settleTime)
	return fmt.Sprintf("%s back after %v as unit %s", victim.Address, took, id), err
}

// kill ends a unit; back waits until another one is at its address and gives its
// id.
func (c checker) kill(ctx context.Context, u clusterUnit) (back func() (string, error), err error) {
	before, err := c.issued(ctx)
	if err != nil {
		return nil, err
	}
	if pid := c.pid(u); pid <= 1 {
		err = errors.New("no process id")
	} else {
		err = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err != nil {
		return nil, fmt.Errorf("killing unit %s: %w", u.Address, err)
	}
	return func() (string, error) { return c.comesBack(ctx, u.Address, before) }, nil
}

// comesBack waits until a unit that was not among before holds a certificate,
// and the address answers again.
func (c checker) comesBack(ctx context.Context, address string, before map[string]bool) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, restartTime)
	defer cancel()
	config, err := c.plain()
	if err != nil {
		return "", err
	}
	for {
		id, err := c.newcomerAmong(ctx, before)
		if err == nil {
			if _, err = handshake(ctx, address, config); err == nil {
				return id, nil
			}
		}
		if !pause(ctx, 50*time.Millisecond) {
			return "", fmt.Errorf("unit %s was killed and is not back within %v: %w", address, restartTime, err)
		}
	}
}

// newcomerAmong is a unit with a certificate that was not there before.
func (c checker) newcomerAmong(ctx context.Context, before map[string]bool) (string, error) {
	now, err := c.issued(ctx)
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

// issued are the unit ids of the newest certificates of the task.
func (c checker) issued(ctx context.Context) (map[string]bool, error) {
	a, err := c.app.authority(ctx, c.pins())
	if err != nil {
		return nil, err
	}
	defer a.Close()
	log, err := a.IssuanceLog(ctx, api.LogQuery{Task: c.cluster.Task})
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

// pause waits, and reports whether ctx still holds.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// load sends requests until it is stopped.
type load struct {
	sent    atomic.Int64
	failed  atomic.Int64
	first   atomic.Pointer[error]
	end     context.CancelFunc
	callers sync.WaitGroup
}

func startLoad(ctx context.Context, through http.RoundTripper, url string) *load {
	l := &load{}
	running, end := context.WithCancel(ctx)
	l.end = end
	for range callers {
		l.callers.Go(func() {
			for pause(running, callPause) {
				l.sent.Add(1)
				if err := call(ctx, through, url); err != nil {
					l.failed.Add(1)
					l.first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	return l
}

// call is one request and its whole answer.
func call(ctx context.Context, through http.RoundTripper, url string) error {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := through.RoundTrip(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode >= http.StatusInternalServerError {
		return errors.New(answer.Status)
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}

// stop ends the load and tells what failed of it.
func (l *load) stop() error {
	l.end()
	l.callers.Wait()
	if first := l.first.Load(); first != nil {
		return fmt.Errorf("%d of %d requests failed: %w", l.failed.Load(), l.sent.Load(), *first)
	}
	return nil
}
