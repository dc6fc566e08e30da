package channelcheck

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// RogueTenant checks that a unit of a second approved task that claims the address, the identity
// and a session of the cluster's task obtains nothing, while the requests and new sessions of
// the cluster's users succeed.
func RogueTenant(ctx context.Context, c check.Checker) (string, error) {
	dir, err := os.MkdirTemp("", "cohort-rogue-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	program, err := check.AppendByte(c.Cluster.Agent, dir) // a measurement of no other task
	if err != nil {
		return "", err
	}
	task, err := approveRogue(ctx, c, program)
	if err != nil {
		return "", fmt.Errorf("approving another task: %w", err)
	}
	t, err := c.Trust(ctx)
	if err != nil {
		return "", err
	}
	unit := c.Cluster.Units[0].Address
	found, err := client.Verify(ctx, unit, client.Config{Trust: t, ServerName: c.Cluster.ServerName})
	if err != nil {
		return "", err
	}
	return c.InSession(ctx, c.Cluster.Gateway, func(s *check.Session) (string, error) {
		end, err := launchRogue(ctx, c, dir, program, "--task", task, "--victim", unit, "--identity", found.Code.Identity.Hex(), "--session", s.Session.ID.String())
		if err != nil {
			return "", err
		}
		asked, opened := 0, 0
		for {
			select {
			case got := <-end:
				return got.result(asked, opened)
			default:
			}
			if _, err := s.GoesOn(ctx); err != nil {
				return "", fmt.Errorf("beside a rogue unit: %w", err)
			}
			asked += check.Asks
			_, err := c.InSession(ctx, c.Cluster.Gateway, func(another *check.Session) (string, error) {
				_, _, err := another.RequestWithReceipt(ctx)
				return "", err
			})
			if err != nil {
				return "", fmt.Errorf("another session beside a rogue unit: %w", err)
			}
			opened++
		}
	})
}

// result returns an error unless the rogue unit attacked and obtained nothing.
func (e rogueEnd) result(asked, opened int) (string, error) {
	got := e.spoils
	switch {
	case e.err != nil:
		return "", fmt.Errorf("the rogue unit: %w", e.err)
	case got.Heartbeats < 50 || asked == 0:
		return "", fmt.Errorf("got %d heartbeats of the rogue unit and %d requests of users, want many", got.Heartbeats, asked)
	case got.Sessions+got.Copies > 0 || got.Requests > 0:
		return "", fmt.Errorf("the rogue unit got %d sealed sessions, %d copies and %d requests of another task, want none", got.Sessions, got.Copies, got.Requests)
	}
	return fmt.Sprintf("a unit of task %s claimed all in %d heartbeats: 0 sessions, 0 copies, 0 requests; beside it %d requests and %d sessions, 0 failed",
		got.Task, got.Heartbeats, asked, opened), nil
}

// rogueEnd is the result of a rogue unit.
type rogueEnd struct {
	spoils spoils
	err    error
}

// launchRogue launches the program as a rogue unit. The channel receives its result.
func launchRogue(ctx context.Context, c check.Checker, dir, program string, args ...string) (<-chan rogueEnd, error) {
	settings, err := localtee.CommandSettings(append([]string{
		"rogue-unit", "-o", "json", "--authority", c.Cluster.Authority, "--genesis", c.Cluster.Genesis, "--state", filepath.Join(dir, "seen.json"),
		"--manager", c.Cluster.Manager.Bus, "--manager-ca", filepath.Join(c.Cluster.Manager.Data, "manager.pem"),
	}, args...))
	if err != nil {
		return nil, err
	}
	out, err := os.Create(filepath.Join(dir, "rogue.json"))
	if err != nil {
		return nil, err
	}
	stderr, err := os.Create(filepath.Join(dir, "rogue.log"))
	if err != nil {
		return nil, err
	}
	p, err := localtee.Launch{Program: []string{program}, Settings: settings, Stdout: out, Stderr: stderr}.Start(ctx, c.Cluster.TEE)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(9) })
	end := make(chan rogueEnd, 1)
	go func() {
		defer stop()
		var e rogueEnd
		exit, err := p.Wait()
		if e.err = err; err == nil && exit != (soft.Exit{}) {
			e.err = fmt.Errorf("%v: %s", exit, dev.LogTail(stderr.Name()))
		}
		if text, err := os.ReadFile(out.Name()); e.err == nil {
			if e.err = err; err == nil {
				e.err = json.Unmarshal(text, &e.spoils)
			}
		}
		out.Close()
		stderr.Close()
		end <- e
	}()
	return end, nil
}

// approveRogue makes the owners adopt a policy with a task for the program, and returns the
// task's name.
func approveRogue(ctx context.Context, c check.Checker, program string) (task string, err error) {
	m, err := localtee.Measure("", []string{program})
	if err != nil {
		return "", err
	}
	a, err := authorityclient.Dial(ctx, c.App, c.ClientPins())
	if err != nil {
		return "", err
	}
	defer a.Close()
	digest, err := check.FileDigest(program)
	if err != nil {
		return "", err
	}
	t := drafttext.Task{Name: "tenant-" + digest.Hex()[:8], KeyMode: string(policyfile.Shared), Release: "1", References: []string{m.Reference}, Dynamic: m.Dynamic, Units: 5}
	t.Names = []string{t.Name + "." + dev.Domain}
	if a.Approved.Document().Tasks[t.Name] != nil {
		return t.Name, nil // an earlier check added it
	}
	var b strings.Builder
	t.Write(func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) })
	return t.Name, c.Adopt(ctx, string(a.Approved.Document().Source())+b.String())
}
