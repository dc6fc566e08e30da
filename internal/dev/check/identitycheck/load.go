package identitycheck

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/retry"
)

const (
	callers   = 4                     // concurrent callers of the load
	callPause = 20 * time.Millisecond // between two requests of one caller
)

// KillAndRestart kills one unit under load through the client. It checks that no request fails,
// and that a new unit starts at the same address.
func KillAndRestart(ctx context.Context, c check.Checker) (string, error) {
	t, err := c.Trust(ctx)
	if err != nil {
		return "", err
	}
	config := client.Config{Trust: t, ServerName: c.Cluster.ServerName}
	for _, u := range c.Cluster.Units {
		config.Addresses = append(config.Addresses, u.Address)
	}
	through, err := client.New(config)
	if err != nil {
		return "", err
	}
	defer through.Close()
	load := startLoad(ctx, through, "https://"+c.Cluster.ServerName+"/")
	detail, err := killOne(ctx, c)
	if failed := load.stopLoad(); err == nil && failed != nil {
		err = failed
	}
	return fmt.Sprintf("%d requests, 0 failed; %s", load.sent.Load(), detail), err
}

// killOne kills the last unit and waits until a new unit is at its address.
func killOne(ctx context.Context, c check.Checker) (string, error) {
	victim := c.Cluster.Units[len(c.Cluster.Units)-1]
	_ = retry.Sleep(ctx, check.SettleTime)
	killed := c.App.Now()
	back, err := c.KillUnit(ctx, victim)
	if err != nil {
		return "", err
	}
	id, err := back()
	took := c.App.Now().Sub(killed).Round(time.Millisecond)
	_ = retry.Sleep(ctx, check.SettleTime)
	return fmt.Sprintf("%s back after %v as unit %s", victim.Address, took, id), err
}

// load is a load of concurrent requests, which run until stopLoad.
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
			for retry.Sleep(running, callPause) == nil {
				l.sent.Add(1)
				if err := check.RequestOnce(ctx, through, url); err != nil {
					l.failed.Add(1)
					l.first.CompareAndSwap(nil, &err)
				}
			}
		})
	}
	return l
}

// stopLoad ends the load, and returns an error if a request failed.
func (l *load) stopLoad() error {
	l.end()
	l.callers.Wait()
	if first := l.first.Load(); first != nil {
		return fmt.Errorf("%d of %d requests failed: %w", l.failed.Load(), l.sent.Load(), *first)
	}
	return nil
}
