package groupcheck

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/drafttext"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/cli/partystatement"
	"github.com/cohort-tee/cohort/internal/cli/sshkey"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/policy/sshsig"
)

// takeoverTime is the duration for which a program of the owners tries to join a group.
const takeoverTime = 3 * time.Second

// rivals are malicious policy owners who act without the parties. They are a quorum, control
// every machine, and have a party and a program of their own to replace that of the asked role.
type rivals struct {
	cluster
	dir     string
	party   sshkey.Pair
	program []string
	task    string // policy text of the program's task
}

func (d cluster) newRivals(dir string) (*rivals, error) {
	keys, err := sshkey.Pairs(filepath.Join(dir, "rival"), "rival")
	if err != nil {
		return nil, err
	}
	changed, err := check.AppendByte(d.Bin.Program[0], dir)
	if err != nil {
		return nil, err
	}
	r := &rivals{cluster: d, dir: dir, party: keys[0], program: append([]string{changed}, d.Bin.Program[1:]...)}
	m, err := localtee.Measure(d.Bin.Cohort, r.program)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	drafttext.Task{Name: "rival", KeyMode: d.Doc.KeyMode, Release: "1", Names: []string{"rival." + dev.Domain}, References: []string{m.Reference}, Dynamic: m.Dynamic}.Write(
		func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) })
	r.task = b.String()
	return r, nil
}

// takeover is one attempt to take a group over: the policies that owners adopt in sequence, and
// the units that they then run. The function try returns an error unless each unit is refused.
type takeover struct {
	policies []check.Edit
	speaks   bool // the owners' party approves the last policy
	loosens  bool // the last policy lowers the group's floors, which stay lower until the group has ended
	try      func(*rivals, context.Context) (string, error)
}

// takeover returns a check in which owners try to take a group over. It fails if a holder
// returns a record meanwhile, if forged certificates are accepted, or if the group does not work
// again under the former policy.
func (d cluster) takeover(way func(*rivals) (takeover, error)) func(context.Context, check.Checker) (string, error) {
	return func(ctx context.Context, c check.Checker) (_ string, err error) {
		dir, err := os.MkdirTemp("", "cohort-takeover-")
		if err != nil {
			return "", err
		}
		defer os.RemoveAll(dir)
		r, err := d.newRivals(dir)
		if err != nil {
			return "", err
		}
		t, err := way(r)
		if err != nil {
			return "", err
		}
		before, err := c.PolicyText(ctx)
		if err != nil {
			return "", err
		}
		genuine, err := d.genuineChain(ctx)
		if err != nil {
			return "", err
		}
		handed, err := d.handed()
		if err != nil {
			return "", err
		}
		defer func() {
			if err != nil { // restore the group for the next check
				err = errors.Join(err, t.giveUp(ctx, c, before))
			}
		}()
		text := before
		for _, change := range t.policies {
			if text, err = change(text); err != nil {
				return "", err
			}
			if err := c.Adopt(ctx, text); err != nil {
				return "", fmt.Errorf("adopting the owners' policy: %w", err)
			}
		}
		if t.speaks {
			if err := d.SubmitStatement(ctx, r.party, sshsig.ForApprove); err != nil {
				return "", fmt.Errorf("the owners' party approving: %w", err)
			}
		}
		tried, err := t.try(r, ctx)
		if err != nil {
			return "", err
		}
		forged, err := d.forgedRefused(ctx, genuine)
		if err != nil {
			return "", err
		}
		after, err := d.handed()
		if err != nil {
			return "", err
		}
		if after != handed {
			return "", fmt.Errorf("%d times records left the holders meanwhile, want 0", after-handed)
		}
		if err := t.giveUp(ctx, c, before); err != nil {
			return "", err
		}
		took, err := d.goesOn(ctx)
		return fmt.Sprintf("%s; %s; 0 records left the holders; the former policy: the statistic is back after %v", tried, forged, took), err
	}
}

// giveUp makes the owners adopt the policy text before again.
func (t takeover) giveUp(ctx context.Context, c check.Checker, before string) error {
	if t.loosens {
		ended, _, err := withoutGroup(before, c.Cluster.Group)
		if err == nil {
			err = c.Adopt(ctx, ended)
		}
		if err != nil {
			return fmt.Errorf("ending the group: %w", err)
		}
	}
	if err := c.Adopt(ctx, before); err != nil {
		return fmt.Errorf("adopting the former policy: %w", err)
	}
	return nil
}

// withoutGroup splits a policy text before the group's tables, which are the last.
func withoutGroup(text, name string) (rest, group string, err error) {
	begins := strings.Index(text, "\n[group."+name+"]\n")
	if begins < 0 {
		return "", "", errors.New("the policy has no group " + name)
	}
	return text[:begins], text[begins:], nil
}

// handed returns the number of times that holders have returned records, from their logs.
func (d cluster) handed() (n int, err error) {
	for _, role := range d.Bin.Example.Holders() {
		b, err := os.ReadFile(filepath.Join(d.State, "unit-"+d.roleName(role)+".log"))
		if err != nil {
			return 0, err
		}
		n += bytes.Count(b, d.handedOut())
	}
	return n, nil
}

// goesOn waits until the statistic is equal to the plain computation, and returns the duration
// of the wait.
func (d cluster) goesOn(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, dev.StartTime)
	defer cancel()
	began := d.App.Now()
	for {
		_, err := d.sameStatistic(ctx)
		if err == nil {
			return since(d, began), nil
		}
		if retry.Sleep(ctx, 100*time.Millisecond) != nil {
			return 0, fmt.Errorf("the group once the owners gave up: %w", err)
		}
	}
}

// groupID returns the identity of the group in force.
func (d cluster) groupID() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), check.StepTime)
	defer cancel()
	c, err := authorityclient.Dial(ctx, d.App, d.ClientPins())
	if err != nil {
		return "", err
	}
	defer c.Close()
	pact, err := partystatement.PactOf(c.Approved, d.Doc.Group, "")
	if err != nil {
		return "", err
	}
	return pact.ID().String(), nil
}

// member prepares a unit of a role with any program, party keys and authority, as an operator
// can.
func (r *rivals) member(role int, authority string, program []string, keys ...string) (check.Newcomer, error) {
	return r.memberOf(r.dir, role, authority, program, nil, keys...)
}

// memberOf prepares a unit of a role. The unit calls the cluster's units, except for roles whose
// address is in others.
func (d cluster) memberOf(dir string, role int, authority string, program []string, others map[string]string, keys ...string) (check.Newcomer, error) {
	list, err := dev.Addresses(0, 2)
	if err != nil {
		return check.Newcomer{}, err
	}
	args := []string{"unit", "--group", d.Doc.Group, "--role", d.roleName(role), "--authority", authority, "--genesis", d.Doc.Genesis, "--listen", list[0], "--health", list[1]}
	for _, called := range d.Bin.Example.Roles[role].Calls {
		i := slices.IndexFunc(d.Bin.Example.Roles, func(m dev.Role) bool { return m.Name == called })
		args = append(args, "--peer", called+"="+cmp.Or(others[called], d.Doc.Units[i].Address))
	}
	for _, key := range keys {
		args = append(args, "--party-key", key)
	}
	settings, err := localtee.CommandSettings(args)
	if err != nil {
		return check.Newcomer{}, err
	}
	log, err := os.CreateTemp(dir, "unit-")
	if err != nil {
		return check.Newcomer{}, err
	}
	return check.Newcomer{Launch: localtee.Launch{Agent: d.Bin.Cohort, Program: program, Settings: settings, Stdout: log, Stderr: log}, Listen: list[0], Health: "http://" + list[1], Log: log}, nil
}

// reasonsLogged matches the reason of a final or temporary refusal in a unit's log.
var reasonsLogged = regexp.MustCompile(`reason=([a-z-]+)|refused \[([a-z-]+)\]`)

// staysOut starts a unit, and returns an error if the unit becomes ready within takeoverTime. It
// returns the reason for the refusal in the unit's log.
func staysOut(ctx context.Context, socket string, n check.Newcomer) (reason string, err error) {
	defer n.Log.Close()
	p, err := n.Launch.Start(ctx, socket)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, check.Ended(p)) }()
	for end := time.Now().Add(takeoverTime); time.Now().Before(end); {
		if dev.Ready(ctx, n.Health) == nil {
			return "", errors.New("the owners' unit is ready, want it refused")
		}
		_ = retry.Sleep(ctx, 50*time.Millisecond)
	}
	logged := dev.LogTail(n.Log.Name())
	found := reasonsLogged.FindStringSubmatch(logged)
	if found == nil {
		return "", fmt.Errorf("the owners' unit logs no reason: %s", logged)
	}
	return found[1] + found[2], nil
}
