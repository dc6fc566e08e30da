package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// cutUnit: owners cut off one unit by its id, which goes on as if they had not. Clients
// refuse it, and the others serve.
func (c checker) cutUnit(ctx context.Context) (string, error) {
	return c.cutOff(ctx, "id", func(dir string) (cutting, error) {
		return cutting{socket: c.cluster.TEE, program: c.cluster.Program[:1:1], by: func(t *twin) edit {
			return c.inTask(fmt.Sprintf("cut_units = [%q]\n", t.id))
		}}, nil
	})
}

// cutRelease: owners take away a release of which a unit runs.
func (c checker) cutRelease(ctx context.Context) (string, error) {
	return c.cutOff(ctx, "release", func(dir string) (cutting, error) {
		changed, err := appendByte(c.cluster.Program[0], dir)
		if err != nil {
			return cutting{}, err
		}
		m, err := measure(c.cluster.Agent, append([]string{changed}, c.cluster.Program[1:]...))
		if err != nil {
			return cutting{}, err
		}
		var b strings.Builder
		draftTask{name: c.cluster.Task, release: "cut", references: []string{m.Reference}, dynamic: m.Dynamic}.writeRelease(
			func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) })
		return cutting{socket: c.cluster.TEE, program: []string{changed}, first: appended(b.String()), by: func(*twin) edit { return replaced(b.String(), "") }}, nil
	})
}

// cutChip: owners cut off a machine by the name of its chip.
func (c checker) cutChip(ctx context.Context) (string, error) {
	return c.onOtherChip(ctx, "chip", func(root, chip string) edit {
		return after("[platform.soft]\n", fmt.Sprintf("cut_chips = [%q]\n", chip))
	})
}

// cutPlatform: owners take the root away that vouches for a machine's TEE.
func (c checker) cutPlatform(ctx context.Context) (string, error) {
	return c.onOtherChip(ctx, "platform root", func(root, chip string) edit { return replaced(root, "") })
}

// onOtherChip is cutOff of a unit in a second development TEE, whose root policy names
// until it is cut.
func (c checker) onOtherChip(ctx context.Context, what string, by func(root, chip string) edit) (_ string, err error) {
	state, err := os.MkdirTemp("", "cohort-chip-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(state)
	other, err := startDaemon(ctx, c.cluster.Agent, state)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, other.stop()) }()
	chips, err := softMachines([]string{other.root})
	if err != nil {
		return "", err
	}
	root := tomlString(other.root) + ", "
	return c.cutOff(ctx, what, func(string) (cutting, error) {
		return cutting{
			socket: other.socket, program: c.cluster.Program[:1:1],
			first: after("[platform.soft]\nroots = [", root),
			by:    func(*twin) edit { return by(root, strings.TrimPrefix(chips[0], "chip:")) },
		}, nil
	})
}

// edit changes the text of a policy.
type edit func(text string) (string, error)

// replaced replaces text that must stand in the policy.
func replaced(old, with string) edit {
	return func(text string) (string, error) {
		if strings.Count(text, old) != 1 {
			return "", fmt.Errorf("the policy has %d places of %q, want one", strings.Count(text, old), old)
		}
		return strings.Replace(text, old, with, 1), nil
	}
}

func after(text, more string) edit { return replaced(text, text+more) }

func appended(more string) edit { return func(text string) (string, error) { return text + more, nil } }

// inTask adds lines to the table of the cluster's task.
func (c checker) inTask(lines string) edit {
	return after(fmt.Sprintf("\n[task.%s]\n", c.cluster.Task), lines)
}

// cutting is how a twin is let in, and cut off.
type cutting struct {
	socket  string           // of the TEE in which it runs
	program []string         // that it runs
	first   edit             // lets it in; nil: the policy in force does
	by      func(*twin) edit // cuts it off
}

// cutOff starts a twin, uses it, cuts it off and demands that every use ends in time, that
// the unit refuses nothing by itself, and that the other units go on. The policy is then as
// it was.
func (c checker) cutOff(ctx context.Context, what string, prepare func(dir string) (cutting, error)) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-cut-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	way, err := prepare(dir)
	if err != nil {
		return "", err
	}
	before, err := c.policyText(ctx)
	if err != nil {
		return "", err
	}
	admitted := before
	if way.first != nil {
		if admitted, err = way.first(before); err != nil {
			return "", err
		}
		if err := c.adopt(ctx, admitted); err != nil {
			return "", fmt.Errorf("letting the unit in: %w", err)
		}
	}
	t, err := c.newTwin(ctx, dir, way.socket, way.program)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	uses, err := c.uses(ctx, t)
	defer func() {
		for _, u := range uses {
			u.end()
		}
	}()
	if err != nil {
		return "", fmt.Errorf("using the unit before the cut: %w", err)
	}
	cut, err := way.by(t)(admitted)
	if err != nil {
		return "", err
	}
	last, err := lastAccepted(ctx, uses, func(ctx context.Context) error {
		close(t.cable.cut)
		return c.adopt(ctx, cut)
	})
	if err != nil {
		return "", err
	}
	if err := ready(ctx, t.health); err != nil {
		return "", fmt.Errorf("the unit that was to go on: %w", err)
	}
	if err := c.refusesAnew(ctx, t); err != nil {
		return "", err
	}
	took, err := c.goOn(ctx)
	if err != nil {
		return "", err
	}
	if cut != before {
		err = c.adopt(ctx, before)
	}
	return fmt.Sprintf("cut off by its %s, a unit goes on; the last response accepted, after the adoption: %s; refused [%s] from then on; each other unit serves after %v",
		what, last, wire.CutOff, took), err
}

// refusesAnew demands that a client which begins now refuses the unit.
func (c checker) refusesAnew(ctx context.Context, t *twin) error {
	trust, err := c.trust(ctx)
	if err != nil {
		return err
	}
	if _, err := client.Verify(ctx, t.listen, client.Config{Trust: trust, ServerName: c.cluster.ServerName}); !errors.Is(err, wire.CutOff) {
		return fmt.Errorf("verifying the unit after the cut: got %v, want a refusal [%s]", err, wire.CutOff)
	}
	return nil
}

// goOn waits until all other units serve clients that verify them, and returns how long
// that took.
func (c checker) goOn(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	began := time.Now()
	for {
		_, err := c.verify(ctx)
		if err == nil {
			return time.Since(began).Round(10 * time.Millisecond), nil
		}
		if !pause(ctx, 50*time.Millisecond) {
			return 0, fmt.Errorf("the other units after the cut: %w", err)
		}
	}
}

// policyText is the text of the policy in force.
func (c checker) policyText(ctx context.Context) (string, error) {
	a, err := c.app.authority(ctx, c.pins())
	if err != nil {
		return "", err
	}
	defer a.Close()
	return string(a.policy.Document().Raw()), nil
}

// adopt has the owners adopt a text as the next policy, with the place of that in the
// history.
func (c checker) adopt(ctx context.Context, text string) error {
	a, err := c.app.authority(ctx, c.pins())
	if err != nil {
		return err
	}
	defer a.Close()
	next, err := placed(text, a.policy.Document().Sequence, a.policy.Document().Digest(), time.Now())
	if err != nil {
		return err
	}
	owners, err := devOwners(filepath.Join(filepath.Dir(c.cluster.Manager.Data), "owners"))
	if err != nil {
		return err
	}
	request := api.ProposeRequest{Policy: next}
	for _, o := range owners[:a.policy.Document().Owners.Quorum] {
		sig, err := c.app.sshSign(o.path, policy.ForPolicy, next)
		if err != nil {
			return err
		}
		request.Signatures = append(request.Signatures, sig)
	}
	adopted, err := a.Propose(ctx, request)
	if err == nil && adopted.State != string(policy.Adopted) {
		err = fmt.Errorf("the proposal is %s, want it adopted", adopted.State)
	}
	return err
}
