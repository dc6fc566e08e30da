package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/policy"
)

// rogueTenant: owners approve another task, and a unit of it claims everything of
// this one: its address, its identity, its sessions. It gets none of them, and this
// task's users notice nothing.
func (c checker) rogueTenant(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "cohort-rogue-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	program, err := appendByte(c.cluster.Agent, dir) // a measurement that no task has
	if err != nil {
		return "", err
	}
	task, err := c.approveRogue(ctx, program)
	if err != nil {
		return "", fmt.Errorf("approving another task: %w", err)
	}
	t, err := c.trust(ctx)
	if err != nil {
		return "", err
	}
	unit := c.cluster.Units[0].Address
	found, err := client.Verify(ctx, unit, client.Config{Trust: t, ServerName: c.cluster.ServerName})
	if err != nil {
		return "", err
	}
	return c.inSession(ctx, c.cluster.Gateway, func(s *session) (string, error) {
		end, err := c.launchRogue(ctx, dir, program, "--task", task, "--victim", unit, "--identity", found.Code.Identity.Hex(), "--session", s.Session.ID.String())
		if err != nil {
			return "", err
		}
		asked, opened := 0, 0
		for {
			select {
			case got := <-end:
				return got.judged(asked, opened)
			default:
			}
			if _, err := s.goesOn(ctx); err != nil {
				return "", fmt.Errorf("beside a rogue unit: %w", err)
			}
			asked += asks
			_, err := c.inSession(ctx, c.cluster.Gateway, func(another *session) (string, error) {
				_, _, err := another.ask(ctx)
				return "", err
			})
			if err != nil {
				return "", fmt.Errorf("another session beside a rogue unit: %w", err)
			}
			opened++
		}
	})
}

// judged demands that a rogue unit tried, and got nothing.
func (e rogueEnd) judged(asked, opened int) (string, error) {
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

// rogueEnd is how a rogue unit ended.
type rogueEnd struct {
	spoils spoils
	err    error
}

// launchRogue launches the program as a rogue unit, and tells its end.
func (c checker) launchRogue(ctx context.Context, dir, program string, args ...string) (<-chan rogueEnd, error) {
	settings, err := commandSettings(append([]string{
		"rogue-unit", "-o", "json", "--authority", c.cluster.Authority, "--genesis", c.cluster.Genesis, "--state", filepath.Join(dir, "seen.json"),
		"--manager", c.cluster.Manager.Bus, "--manager-ca", filepath.Join(c.cluster.Manager.Data, "manager.pem"),
	}, args...))
	if err != nil {
		return nil, err
	}
	out, err := os.Create(filepath.Join(dir, "rogue.json"))
	if err != nil {
		return nil, err
	}
	talk, err := os.Create(filepath.Join(dir, "rogue.log"))
	if err != nil {
		return nil, err
	}
	p, err := launch{program: []string{program}, settings: settings, stdout: out, stderr: talk}.start(ctx, c.cluster.TEE)
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
			e.err = fmt.Errorf("%v: %s", exit, tail(talk.Name()))
		}
		if text, err := os.ReadFile(out.Name()); e.err == nil {
			if e.err = err; err == nil {
				e.err = json.Unmarshal(text, &e.spoils)
			}
		}
		out.Close()
		talk.Close()
		end <- e
	}()
	return end, nil
}

// approveRogue has the owners approve a task of one program, and gives its name.
func (c checker) approveRogue(ctx context.Context, program string) (task string, err error) {
	m, err := measure("", []string{program})
	if err != nil {
		return "", err
	}
	a, err := c.app.authority(ctx, c.pins())
	if err != nil {
		return "", err
	}
	defer a.Close()
	digest, err := fileDigest(program)
	if err != nil {
		return "", err
	}
	t := draftTask{name: "tenant-" + digest.Hex()[:8], keyMode: string(policy.Shared), release: "1", references: []string{m.Reference}, dynamic: m.Dynamic, units: 5}
	t.names = []string{t.name + "." + devDomain}
	if a.policy.Document().Tasks[t.name] != nil {
		return t.name, nil // by a check before
	}
	var b strings.Builder
	t.write(func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) })
	return t.name, c.adopt(ctx, string(a.policy.Document().Raw())+b.String())
}
