package identitycheck

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
)

// CutUnit checks that clients refuse a unit whose id owners cut off, although the unit itself
// continues, and that the other units serve.
func CutUnit(ctx context.Context, c check.Checker) (string, error) {
	return cutOff(ctx, c, "id", func(dir string) (cutting, error) {
		return cutting{socket: c.Cluster.TEE, program: c.Cluster.Program[:1:1], by: func(t *twin) check.Edit {
			return inTask(c, fmt.Sprintf("cut_units = [%q]\n", t.id))
		}}, nil
	})
}

// CutRelease checks that clients refuse a unit of a release that owners removed.
func CutRelease(ctx context.Context, c check.Checker) (string, error) {
	return cutOff(ctx, c, "release", func(dir string) (cutting, error) {
		changed, err := check.AppendByte(c.Cluster.Program[0], dir)
		if err != nil {
			return cutting{}, err
		}
		m, err := localtee.Measure(c.Cluster.Agent, append([]string{changed}, c.Cluster.Program[1:]...))
		if err != nil {
			return cutting{}, err
		}
		var b strings.Builder
		drafttext.Task{Name: c.Cluster.Task, Release: "cut", References: []string{m.Reference}, Dynamic: m.Dynamic}.WriteRelease(
			func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) })
		return cutting{socket: c.Cluster.TEE, program: []string{changed}, first: check.Appended(b.String()), by: func(*twin) check.Edit { return check.Replaced(b.String(), "") }}, nil
	})
}

// CutChip checks that clients refuse a unit on a machine whose chip owners cut off.
func CutChip(ctx context.Context, c check.Checker) (string, error) {
	return onOtherChip(ctx, c, "chip", func(root, chip string) check.Edit {
		return check.After("[platform.soft]\n", fmt.Sprintf("cut_chips = [%q]\n", chip))
	})
}

// CutPlatform checks that clients refuse a unit on a machine whose TEE root owners removed.
func CutPlatform(ctx context.Context, c check.Checker) (string, error) {
	return onOtherChip(ctx, c, "platform root", func(root, chip string) check.Edit { return check.Replaced(root, "") })
}

// onOtherChip is cutOff for a unit in a second development TEE. The policy names the root of
// that TEE until the cut-off.
func onOtherChip(ctx context.Context, c check.Checker, what string, by func(root, chip string) check.Edit) (_ string, err error) {
	state, err := os.MkdirTemp("", "cohort-chip-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(state)
	other, err := dev.StartDaemon(ctx, c.Cluster.Agent, state)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, other.Stop()) }()
	chips, err := drafttext.SoftMachines([]string{other.Root})
	if err != nil {
		return "", err
	}
	root := localtee.TOMLString(other.Root) + ", "
	return cutOff(ctx, c, what, func(string) (cutting, error) {
		return cutting{
			socket: other.Socket, program: c.Cluster.Program[:1:1],
			first: check.After("[platform.soft]\nroots = [", root),
			by:    func(*twin) check.Edit { return by(root, strings.TrimPrefix(chips[0], "chip:")) },
		}, nil
	})
}

// inTask returns an Edit that adds lines to the table of the cluster's task.
func inTask(c check.Checker, lines string) check.Edit {
	return check.After(fmt.Sprintf("\n[task.%s]\n", c.Cluster.Task), lines)
}

// cutting defines how policy admits a twin, and how it cuts the twin off.
type cutting struct {
	socket  string                 // socket of the twin's TEE
	program []string               // program of the twin
	first   check.Edit             // admits the twin; nil: the policy in force admits it
	by      func(*twin) check.Edit // cuts the twin off
}

// cutOff starts a twin, uses it and cuts it off. It returns an error unless clients refuse every
// use in time, the twin itself stays ready, and the other units continue. It then restores the
// policy.
func cutOff(ctx context.Context, c check.Checker, what string, prepare func(dir string) (cutting, error)) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-cut-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	way, err := prepare(dir)
	if err != nil {
		return "", err
	}
	before, err := c.PolicyText(ctx)
	if err != nil {
		return "", err
	}
	admitted := before
	if way.first != nil {
		if admitted, err = way.first(before); err != nil {
			return "", err
		}
		if err := c.Adopt(ctx, admitted); err != nil {
			return "", fmt.Errorf("letting the unit in: %w", err)
		}
	}
	t, err := newTwin(ctx, c, dir, way.socket, way.program)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	uses, err := allUses(ctx, c, t)
	defer func() {
		for _, u := range uses {
			u.End()
		}
	}()
	if err != nil {
		return "", fmt.Errorf("using the unit before the cut: %w", err)
	}
	cut, err := way.by(t)(admitted)
	if err != nil {
		return "", err
	}
	last, err := check.LastAccepted(ctx, uses, func(ctx context.Context) error {
		close(t.cable.Cut)
		return c.Adopt(ctx, cut)
	})
	if err != nil {
		return "", err
	}
	if err := dev.Ready(ctx, t.Health); err != nil {
		return "", fmt.Errorf("the unit that was to go on: %w", err)
	}
	if err := refusesAnew(ctx, c, t); err != nil {
		return "", err
	}
	took, err := resumeTime(ctx, c)
	if err != nil {
		return "", err
	}
	if cut != before {
		err = c.Adopt(ctx, before)
	}
	return fmt.Sprintf("cut off by its %s, a unit goes on; the last response accepted, after the adoption: %s; refused [%s] from then on; each other unit serves after %v",
		what, last, wire.CutOff, took), err
}

// refusesAnew returns an error unless a new client refuses the unit.
func refusesAnew(ctx context.Context, c check.Checker, t *twin) error {
	trust, err := c.Trust(ctx)
	if err != nil {
		return err
	}
	if _, err := client.Verify(ctx, t.Listen, client.Config{Trust: trust, ServerName: c.Cluster.ServerName}); !errors.Is(err, wire.CutOff) {
		return fmt.Errorf("verifying the unit after the cut: got %v, want a refusal [%s]", err, wire.CutOff)
	}
	return nil
}

// resumeTime waits until all of the cluster's units serve clients that verify them, and returns
// the duration of the wait.
func resumeTime(ctx context.Context, c check.Checker) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, dev.StartTime)
	defer cancel()
	began := time.Now()
	for {
		_, err := c.Verify(ctx)
		if err == nil {
			return time.Since(began).Round(10 * time.Millisecond), nil
		}
		if retry.Sleep(ctx, 50*time.Millisecond) != nil {
			return 0, fmt.Errorf("the other units after the cut: %w", err)
		}
	}
}
