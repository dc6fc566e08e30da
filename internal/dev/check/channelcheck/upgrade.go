package channelcheck

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/retry"
)

// firstRelease is the release in the first policy of a development cluster.
const firstRelease = 1

// Upgrades replaces the program with n further releases in sequence, each of which continues the
// one before. Meanwhile requests run in one session, which is pinned to the task's name.
// Upgrades returns an error unless the session survives all upgrades and no request fails.
func Upgrades(ctx context.Context, started *dev.Cluster, n int) error {
	if n == 0 {
		return nil
	}
	d := cluster{started}
	_, err := check.ForCluster(d.Cluster).InSession(ctx, d.Doc.Gateway, func(s *check.Session) (string, error) {
		for release := firstRelease + 1; release <= firstRelease+n; release++ {
			if err := d.upgradeOnce(ctx, s, release); err != nil {
				return "", &frame.Fault{Code: frame.CodeCheckFailed, Cause: fmt.Errorf("upgrading to release %d: %w", release, err)}
			}
		}
		return "", nil
	})
	return err
}

// upgradeOnce upgrades to a release while requests run, and prints the outcome.
func (d cluster) upgradeOnce(ctx context.Context, s *check.Session, release int) error {
	began := d.App.Now()
	asked, err := whileAsking(ctx, s, func() error { return d.upgrade(ctx, release) })
	if err != nil {
		return err
	}
	if _, err := s.GoesOn(ctx); err != nil {
		return err
	}
	o := check.Outcome{Name: "channel/upgrade", OK: true, Detail: fmt.Sprintf("release %d on %d units after %v; %d requests, 0 failed, in the session of the first release",
		release, dev.Units, d.App.Now().Sub(began).Round(time.Millisecond), asked)}
	return d.App.PrintResult("check", o, o.FormatLine())
}

// whileAsking sends requests in sequence while do runs, and returns the number that succeeded.
// The first failed request is an error.
func whileAsking(ctx context.Context, s *check.Session, do func() error) (asked int, err error) {
	done := make(chan struct{})
	var asking sync.WaitGroup
	var failed error
	asking.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(10 * time.Millisecond):
			}
			if failed = check.RequestOnce(ctx, s, s.URL); failed != nil {
				return
			}
			asked++
		}
	})
	err = do()
	close(done)
	asking.Wait()
	return asked, errors.Join(err, failed)
}

// upgrade approves the next release, the same program with one more byte, and restarts the units
// with it one after the other.
func (d cluster) upgrade(ctx context.Context, release int) error {
	dir := filepath.Join(d.State, fmt.Sprint("release-", release))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	changed, err := check.AppendByte(d.Program()[0], dir)
	if err != nil {
		return err
	}
	program := append([]string{changed}, d.Program()[1:]...)
	m, err := localtee.Measure(d.Bin.Cohort, program)
	if err != nil {
		return err
	}
	if err := check.Approve(ctx, d.Cluster, release, m); err != nil {
		return fmt.Errorf("approving release %d: %w", release, err)
	}
	d.UpdateDescription(func(c *dev.Description) { c.Program = program })
	for _, u := range d.Describe().Units {
		if err := d.replace(ctx, u); err != nil {
			return err
		}
	}
	return nil
}

// replace ends a unit's process, which the cluster restarts, and waits until the new unit is
// ready.
func (d cluster) replace(ctx context.Context, u dev.Unit) error {
	ctx, cancel := context.WithTimeout(ctx, dev.StartTime)
	defer cancel()
	old := check.ForCluster(d.Cluster).UnitPID(u)
	if err := syscall.Kill(old, syscall.SIGTERM); err != nil {
		return fmt.Errorf("ending unit %s: %w", u.Address, err)
	}
	for {
		response, err := http.Get(u.Health + api.PathReady)
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK && check.ForCluster(d.Cluster).UnitPID(u) != old {
				return nil
			}
		}
		if retry.Sleep(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("unit %s: not back within %v: %w", u.Address, dev.StartTime, err)
		}
	}
}
