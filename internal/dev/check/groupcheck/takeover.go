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

// takeoverTime is how long a program of the owners' tries to get into a group.
const takeoverTime = 3 * time.Second

// rivals are policy owners without the parties: a quorum of them, with a key of a party
// of their own, a program of their own for the place of the one that users ask, and every machine.
type rivals struct {
	cluster
	dir     string
	party   sshkey.Pair
	program []string
	task    string // the text of the program's task
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

// takeover is one way in: the policies that owners adopt one after the other, and what
// they then run. The runs refuse unless each is refused.
type takeover struct {
	policies []check.Edit
	speaks   bool // the party of their own approves the last
	loosens  bool // the last lowers the group's floors, which stay lower until the group was ended
	try      func(*rivals, context.Context) (string, error)
}

// takeover has owners take a group over, and demands that no record leaves its
// holders meanwhile, that nothing forged is accepted, and that the group goes on once the
// owners have given up.
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
			if err != nil { // the next check begins with the group as it was
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

// giveUp makes the policy of before the one in force.
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

// withoutGroup takes the group's tables, which are the last, from the text of a policy.
func withoutGroup(text, name string) (rest, group string, err error) {
	begins := strings.Index(text, "\n[group."+name+"]\n")
	if begins < 0 {
		return "", "", errors.New("the policy has no group " + name)
	}
	return text[:begins], text[begins:], nil
}

// handed is how often records left a holder so far, as the holders count it.
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

// goesOn waits until the statistic is equal to the plain computation, and returns how
// long that took.
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

// groupID is the identity of the group in force.
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

// member prepares a unit of a role, as its operator likes: a program that runs for the
// parties whose keys these are, with an authority.
func (r *rivals) member(role int, authority string, program []string, keys ...string) (check.Newcomer, error) {
	return r.memberOf(r.dir, role, authority, program, nil, keys...)
}

// memberOf prepares a unit of a role. It calls the cluster's units, but for roles that have
// another address.
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

// reasonsLogged finds the reason of a unit that is refused, for good or until later.
var reasonsLogged = regexp.MustCompile(`reason=([a-z-]+)|refused \[([a-z-]+)\]`)

// staysOut starts a unit and demands that it gets no certificate for a while. It returns
// the reason that the unit logs.
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
