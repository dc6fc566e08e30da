package cli

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
)

// firstRelease is the release that a development policy begins with.
const firstRelease = 1

// drill replaces the program by n releases one after the other, each continuing
// the one before, while requests run in one session that is opened by the task's
// name. It refuses unless the session goes on through all of them and no request
// fails.
func (d *dev) drill(ctx context.Context, n int) error {
	if n == 0 {
		return nil
	}
	_, err := checkerOf(d).inSession(ctx, d.cluster.Gateway, func(s *session) (string, error) {
		for release := firstRelease + 1; release <= firstRelease+n; release++ {
			if err := d.drillOne(ctx, s, release); err != nil {
				return "", &fault{code: codeCheckFailed, cause: fmt.Errorf("upgrading to release %d: %w", release, err)}
			}
		}
		return "", nil
	})
	return err
}

// drillOne upgrades to a release, and says how the session went on meanwhile.
func (d *dev) drillOne(ctx context.Context, s *session, release int) error {
	began := d.app.now()
	asked, err := whileAsking(ctx, s, func() error { return d.upgrade(ctx, release) })
	if err != nil {
		return err
	}
	if _, err := s.goesOn(ctx); err != nil {
		return err
	}
	o := outcome{Name: "channel/upgrade", OK: true, Detail: fmt.Sprintf("release %d on %d units after %v; %d requests, 0 failed, in the session of the first release",
		release, devUnits, d.app.now().Sub(began).Round(time.Millisecond), asked)}
	return d.app.emit("check", o, o.line())
}

// whileAsking sends one request after the other while something is done, and says
// how many were answered; the first that fails is an error.
func whileAsking(ctx context.Context, s *session, do func() error) (asked int, err error) {
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
			if failed = call(ctx, s, s.url); failed != nil {
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

// upgrade approves the next release, which is the same program with a byte more,
// and starts the units again with it, one after the other.
func (d *dev) upgrade(ctx context.Context, release int) error {
	dir := filepath.Join(d.state, fmt.Sprint("release-", release))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	changed, err := appendByte(d.program()[0], dir)
	if err != nil {
		return err
	}
	program := append([]string{changed}, d.program()[1:]...)
	m, err := measure(d.bin.cohort, program)
	if err != nil {
		return err
	}
	if err := approve(ctx, d, release, m); err != nil {
		return fmt.Errorf("approving release %d: %w", release, err)
	}
	d.note(func(c *cluster) { c.Program = program })
	for _, u := range d.described().Units {
		if err := d.replace(ctx, u); err != nil {
			return err
		}
	}
	return nil
}

// program is what units run when they start next.
func (d *dev) program() []string { return d.described().Program }

// approve writes a release behind the policy in force, signs that with the quorum
// of owners, and proposes it.
func approve(ctx context.Context, d *dev, release int, m measurement) error {
	a, err := d.app.authority(ctx, d.pins())
	if err != nil {
		return err
	}
	defer a.Close()
	text, err := successor(a.policy.Document().Raw(), d.app.now())
	if err != nil {
		return err
	}
	t := draftTask{name: d.cluster.Task, release: fmt.Sprint(release), references: []string{m.Reference}, dynamic: m.Dynamic}
	text = append(text, t.continuing(fmt.Sprint(release-1))...)
	owners, err := devOwners(filepath.Join(d.state, "owners"))
	if err != nil {
		return err
	}
	request := api.ProposeRequest{Policy: text}
	for _, o := range owners[:a.policy.Document().Owners.Quorum] {
		sig, err := d.app.signPolicy(o.path, text)
		if err != nil {
			return err
		}
		request.Signatures = append(request.Signatures, sig)
	}
	_, err = a.Propose(ctx, request)
	return err
}

// replace ends a unit, which is started again, and waits until it serves.
func (d *dev) replace(ctx context.Context, u clusterUnit) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	old := checkerOf(d).pid(u)
	if err := syscall.Kill(old, syscall.SIGTERM); err != nil {
		return fmt.Errorf("ending unit %s: %w", u.Address, err)
	}
	for {
		answer, err := http.Get(u.Health + api.PathReady)
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK && checkerOf(d).pid(u) != old {
				return nil
			}
		}
		if !pause(ctx, 50*time.Millisecond) {
			return fmt.Errorf("unit %s: not back within %v: %w", u.Address, startTime, err)
		}
	}
}
