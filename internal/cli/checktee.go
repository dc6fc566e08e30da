package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
)

// refusalTime is how long a unit or authority that must refuse to start may
// take to say so.
const refusalTime = 20 * time.Second

// pins are what the description gives a client. What it has seen would lie
// beside the root.
func (c checker) pins() pinFlags {
	return pinFlags{
		authorities: []string{c.cluster.Authority}, genesis: c.cluster.Genesis, task: c.cluster.Task,
		state: filepath.Join(filepath.Dir(c.cluster.Root), "seen.json"),
	}
}

// trust is what a client of the SDK makes of the description. It remembers
// nothing.
func (c checker) trust(ctx context.Context) (*client.Trust, error) {
	genesis, err := wire.ParseDigest(c.cluster.Genesis)
	if err != nil {
		return nil, err
	}
	return client.FetchTrust(ctx, client.TrustConfig{
		Authorities: []string{c.cluster.Authority}, Genesis: genesis, Task: c.cluster.Task, Verifier: verifier(), Clock: c.app.now,
	})
}

// verify: the checking client finds the same identity at each address.
func (c checker) verify(ctx context.Context) (string, error) {
	t, err := c.trust(ctx)
	if err != nil {
		return "", err
	}
	var id wire.Digest
	for _, u := range c.cluster.Units {
		r, err := client.Verify(ctx, u.Address, client.Config{Trust: t, ServerName: c.cluster.ServerName})
		if err != nil {
			return "", fmt.Errorf("unit %s: %w", u.Address, err)
		}
		if !id.IsZero() && id != r.Code.Identity {
			return "", fmt.Errorf("unit %s: got identity %s, want %s", u.Address, r.Code.Identity, id)
		}
		id = r.Code.Identity
	}
	return fmt.Sprintf("each unit is %s, authority appraised on %s", id, t.Evidence().Measurement().Platform), nil
}

// changedProgramRefused: a program with one byte more is refused, by name of
// got and want, and is never ready; the others go on.
func (c checker) changedProgramRefused(ctx context.Context) (string, error) {
	dir, err := os.MkdirTemp("", "cohort-changed-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	changed, err := appendByte(c.cluster.Program[0], dir)
	if err != nil {
		return "", err
	}
	m, err := measure(c.cluster.Agent, append([]string{changed}, c.cluster.Program[1:]...))
	if err != nil {
		return "", err
	}
	u, err := c.newUnit(dir, c.cluster.Authority, []string{changed})
	if err != nil {
		return "", err
	}
	if err := u.mustBeRefused(ctx, c.cluster.TEE, wire.NotMeasured); err != nil {
		return "", err
	}
	if err := c.refusalLogged(ctx, m.Program); err != nil {
		return "", err
	}
	_, err = c.anyReplica(ctx)
	return "refused [measurement] got " + m.Program[:15] + "…, never ready, others go on", err
}

// appendByte copies a program into dir, with one byte more.
func appendByte(path, dir string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "changed")
	return out, os.WriteFile(out, append(b, 0), 0o700)
}

// refusalLogged demands that the authority's log names the measurement it got
// and one that policy wants.
func (c checker) refusalLogged(ctx context.Context, got string) error {
	a, err := c.app.authority(ctx, c.pins())
	if err != nil {
		return err
	}
	defer a.Close()
	log, err := a.IssuanceLog(ctx, api.LogQuery{Limit: 20})
	if err != nil {
		return err
	}
	original, err := fileDigest(c.cluster.Program[0])
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(log.Entries, func(e api.LogEntry) bool {
		return e.Kind == "refused" && e.Reason == wire.NotMeasured && strings.Contains(e.Detail, got) && strings.Contains(e.Detail, original.String())
	}) {
		return fmt.Errorf("the authority's log has no refusal that names got %s and want %s", got, original)
	}
	return nil
}

// newcomer is a unit that must be refused.
type newcomer struct {
	launch launch
	listen string
	health string
	log    *os.File
}

// newUnit prepares one more unit of the cluster's task at an authority. program
// replaces the cluster's program, whose arguments stay; flags are more of the
// unit's.
func (c checker) newUnit(dir, authority string, program []string, flags ...string) (newcomer, error) {
	list, err := addresses(0, 2)
	if err != nil {
		return newcomer{}, err
	}
	settings, err := commandSettings(append([]string{"unit", "--task", c.cluster.Task, "--authority", authority,
		"--genesis", c.cluster.Genesis, "--listen", list[0], "--health", list[1]}, flags...))
	if err != nil {
		return newcomer{}, err
	}
	log, err := os.Create(filepath.Join(dir, "unit.log"))
	if err != nil {
		return newcomer{}, err
	}
	l := launch{agent: c.cluster.Agent, program: append(program, c.cluster.Program[1:]...), settings: settings, stdout: log, stderr: log}
	return newcomer{l, list[0], "http://" + list[1], log}, nil
}

// mustBeRefused launches the unit, and demands that it ends as refused for this
// reason without having been ready.
func (n newcomer) mustBeRefused(ctx context.Context, socket string, reason wire.Reason) error {
	defer n.log.Close()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	wasReady := n.watch(watching)
	if err := mustEndRefused(ctx, socket, n.launch, reason); err != nil {
		return err
	}
	stop()
	if <-wasReady {
		return errors.New("the unit was ready before it was refused")
	}
	return nil
}

// watch says, once ctx is done, whether the health pages ever said ready.
func (n newcomer) watch(ctx context.Context) <-chan bool {
	was := make(chan bool, 1)
	go func() {
		ready := false
		for ctx.Err() == nil {
			if r, err := http.Get(n.health + "/readyz"); err == nil {
				ready = ready || r.StatusCode == http.StatusOK
				r.Body.Close()
			}
			time.Sleep(20 * time.Millisecond)
		}
		was <- ready
	}()
	return was
}

// mustEndRefused runs a measured cohort and demands that it refuses, for one
// reason, to go on. Its streams are one file.
func mustEndRefused(ctx context.Context, socket string, l launch, reason wire.Reason) error {
	ctx, cancel := context.WithTimeout(ctx, refusalTime)
	defer cancel()
	p, err := l.start(ctx, socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(9) })
	defer stop()
	exit, err := p.Wait()
	if err != nil {
		return err
	}
	said := tail(l.stderr.Name())
	if exit != (soft.Exit{Code: exitRefused}) || !strings.Contains(said, "["+string(reason)+"]") {
		return fmt.Errorf("got %v, want a refusal [%s]; it said: %s", exit, reason, said)
	}
	return nil
}

// otherAuthorityRefused: the same code with another root secret serves nobody
// here. Under this cluster's own policy it refuses to start; under a policy of
// its own, client and unit that were given this cluster's genesis refuse it.
func (c checker) otherAuthorityRefused(ctx context.Context) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-other-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	other, err := c.otherCluster(ctx, dir)
	if err != nil {
		return "", err
	}
	ctx, other.cancel = context.WithCancel(ctx)
	defer func() { err = errors.Join(err, other.stop()) }()
	if err := other.initAuthority(ctx); err != nil {
		return "", err
	}
	if err := c.refusesOurPolicy(ctx, other); err != nil {
		return "", fmt.Errorf("another root under this policy: %w", err)
	}
	if err := other.signGenesis(ctx); err != nil {
		return "", err
	}
	if err := other.startAuthority(ctx); err != nil {
		return "", err
	}
	fooled := c
	fooled.cluster.Authority = other.cluster.Authority
	if _, err := fooled.trust(ctx); !errors.Is(err, wire.WrongGenesis) {
		return "", fmt.Errorf("client at another authority: got %v, want a refusal [%s]", err, wire.WrongGenesis)
	}
	u, err := c.newUnit(dir, other.cluster.Authority, c.cluster.Program[:1:1])
	if err != nil {
		return "", err
	}
	if err := u.mustBeRefused(ctx, c.cluster.TEE, wire.WrongGenesis); err != nil {
		return "", fmt.Errorf("unit at another authority: %w", err)
	}
	return "refuses to start under this policy [draft]; client and unit refuse it [genesis]", nil
}

// otherCluster is a second authority in the same TEE, not started yet.
func (c checker) otherCluster(ctx context.Context, dir string) (*dev, error) {
	t, err := c.trust(ctx)
	if err != nil {
		return nil, err
	}
	roots := t.Policy().Document().Platforms[attest.Soft].Roots
	if len(roots) == 0 {
		return nil, errors.New("the policy names no soft root")
	}
	b := binaries{cohort: c.cluster.Agent, program: c.cluster.Program}
	d, err := c.app.newDev(devFlags{task: c.cluster.Task, keyMode: c.cluster.KeyMode}, dir, b)
	if err != nil {
		return nil, err
	}
	d.tee = &daemon{root: roots[0].String(), socket: c.cluster.TEE}
	return d, d.prepareState()
}

// refusesOurPolicy starts the other authority under this cluster's first policy.
func (c checker) refusesOurPolicy(ctx context.Context, other *dev) error {
	a, err := c.app.authority(ctx, c.pins())
	if err != nil {
		return err
	}
	defer a.Close()
	return c.mustNotStart(ctx, other.dir, other.storeFile(), a.policy.Steps()[0], wire.WrongDraft)
}
