package cli

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

	"github.com/cohort-tee/cohort/policy"
)

// takeoverTime is how long a program of the owners' tries to get into a group.
const takeoverTime = 3 * time.Second

// handedOut is what a holder of the example logs for each table that leaves it.
const handedOut = "records handed out"

// rivals are policy owners without the parties: a quorum of them, with a key of a party
// of their own, a program of their own for the joiner's place, and every machine.
type rivals struct {
	*dev
	dir     string
	party   owner
	program []string
	task    string // the text of the program's task
}

func (d *dev) newRivals(dir string) (*rivals, error) {
	keys, err := sshKeys(filepath.Join(dir, "rival"), "rival")
	if err != nil {
		return nil, err
	}
	changed, err := appendByte(d.bin.program[0], dir)
	if err != nil {
		return nil, err
	}
	r := &rivals{dev: d, dir: dir, party: keys[0], program: append([]string{changed}, d.bin.program[1:]...)}
	m, err := measure(d.bin.cohort, r.program)
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	draftTask{name: "rival", keyMode: d.cluster.KeyMode, release: "1", names: []string{"rival." + devDomain}, references: []string{m.Reference}, dynamic: m.Dynamic}.write(
		func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) })
	r.task = b.String()
	return r, nil
}

// takeover is one way in: the policies that owners adopt one after the other, and what
// they then run. The runs refuse unless each is refused.
type takeover struct {
	policies []edit
	speaks   bool // the party of their own approves the last
	loosens  bool // the last lowers the group's floors, which stay lower until the group was ended
	try      func(*rivals, context.Context) (string, error)
}

// takeoverStory has owners take a group over, and demands that no record leaves its
// holders meanwhile, that nothing forged is accepted, and that the group goes on once the
// owners have given up.
func (d *dev) takeoverStory(way func(*rivals) (takeover, error)) func(checker, context.Context) (string, error) {
	return func(c checker, ctx context.Context) (_ string, err error) {
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
		before, err := c.policyText(ctx)
		if err != nil {
			return "", err
		}
		genuine, err := d.joinersChain(ctx)
		if err != nil {
			return "", err
		}
		handed, err := d.handed()
		if err != nil {
			return "", err
		}
		defer func() {
			if err != nil { // the next story begins with the group as it was
				err = errors.Join(err, t.giveUp(ctx, c, before))
			}
		}()
		text := before
		for _, change := range t.policies {
			if text, err = change(text); err != nil {
				return "", err
			}
			if err := c.adopt(ctx, text); err != nil {
				return "", fmt.Errorf("adopting the owners' policy: %w", err)
			}
		}
		if t.speaks {
			if err := d.tell(ctx, r.party, policy.ForApprove); err != nil {
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
func (t takeover) giveUp(ctx context.Context, c checker, before string) error {
	if t.loosens {
		ended, _, err := withoutGroup(before)
		if err == nil {
			err = c.adopt(ctx, ended)
		}
		if err != nil {
			return fmt.Errorf("ending the group: %w", err)
		}
	}
	if err := c.adopt(ctx, before); err != nil {
		return fmt.Errorf("adopting the former policy: %w", err)
	}
	return nil
}

// withoutGroup takes the group's tables, which are the last, from the text of a policy.
func withoutGroup(text string) (rest, group string, err error) {
	begins := strings.Index(text, "\n[group."+devJoint+"]\n")
	if begins < 0 {
		return "", "", errors.New("the policy has no group " + devJoint)
	}
	return text[:begins], text[begins:], nil
}

// handed is how often records left a holder so far, as the holders count it.
func (d *dev) handed() (n int, err error) {
	for _, role := range []int{bank, insurer} {
		b, err := os.ReadFile(filepath.Join(d.state, "unit-"+jointMembers[role].role+".log"))
		if err != nil {
			return 0, err
		}
		n += bytes.Count(b, []byte(handedOut))
	}
	return n, nil
}

// goesOn waits until the statistic is equal to the plain computation, and returns how
// long that took.
func (d *dev) goesOn(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	began := d.app.now()
	for {
		_, err := d.statisticStory(ctx)
		if err == nil {
			return since(d, began), nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			return 0, fmt.Errorf("the group once the owners gave up: %w", err)
		}
	}
}

// groupID is the identity of the group in force.
func (d *dev) groupID() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), stepTime)
	defer cancel()
	c, err := d.app.authority(ctx, d.pins())
	if err != nil {
		return "", err
	}
	defer c.Close()
	pact, err := pactOf(c.policy, devJoint, "")
	if err != nil {
		return "", err
	}
	return pact.ID().String(), nil
}

// member prepares a unit of a role, as its operator likes: a program that runs for the
// parties whose keys these are, with an authority.
func (r *rivals) member(role int, authority string, program []string, keys ...string) (newcomer, error) {
	return r.memberOf(r.dir, role, authority, program, nil, keys...)
}

// memberOf prepares a unit of a role. It calls the cluster's units, but for roles that have
// another address.
func (d *dev) memberOf(dir string, role int, authority string, program []string, others map[string]string, keys ...string) (newcomer, error) {
	list, err := addresses(0, 2)
	if err != nil {
		return newcomer{}, err
	}
	args := []string{"unit", "--group", devJoint, "--role", jointMembers[role].role, "--authority", authority, "--genesis", d.cluster.Genesis, "--listen", list[0], "--health", list[1]}
	for _, called := range jointMembers[role].calls {
		i := slices.IndexFunc(jointMembers, func(m jointMember) bool { return m.role == called })
		args = append(args, "--peer", called+"="+cmp.Or(others[called], d.cluster.Units[i].Address))
	}
	for _, key := range keys {
		args = append(args, "--party-key", key)
	}
	settings, err := commandSettings(args)
	if err != nil {
		return newcomer{}, err
	}
	log, err := os.CreateTemp(dir, "unit-")
	if err != nil {
		return newcomer{}, err
	}
	return newcomer{launch{agent: d.bin.cohort, program: program, settings: settings, stdout: log, stderr: log}, list[0], "http://" + list[1], log}, nil
}

// reasonsLogged finds the reason of a unit that is refused, for good or until later.
var reasonsLogged = regexp.MustCompile(`reason=([a-z-]+)|refused \[([a-z-]+)\]`)

// staysOut starts a unit and demands that it gets no certificate for a while. It returns
// the reason that the unit logs.
func staysOut(ctx context.Context, socket string, n newcomer) (reason string, err error) {
	defer n.log.Close()
	p, err := n.launch.start(ctx, socket)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, ended(p)) }()
	for end := time.Now().Add(takeoverTime); time.Now().Before(end); {
		if ready(ctx, n.health) == nil {
			return "", errors.New("the owners' unit is ready, want it refused")
		}
		pause(ctx, 50*time.Millisecond)
	}
	said := tail(n.log.Name())
	found := reasonsLogged.FindStringSubmatch(said)
	if found == nil {
		return "", fmt.Errorf("the owners' unit logs no reason: %s", said)
	}
	return found[1] + found[2], nil
}
