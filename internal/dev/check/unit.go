package check

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/attest/soft"
	"github.com/cohort-tee/cohort/client"
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/frame"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/retry"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// ComesUp waits until a unit is ready, for at most [dev.StartTime].
func ComesUp(ctx context.Context, n Newcomer) error {
	ctx, cancel := context.WithTimeout(ctx, dev.StartTime)
	defer cancel()
	for {
		err := dev.Ready(ctx, n.Health)
		if err == nil {
			return nil
		}
		if retry.Sleep(ctx, 50*time.Millisecond) != nil {
			return fmt.Errorf("unit %s: not ready within %v: %w: %s", n.Listen, dev.StartTime, err, dev.LogTail(n.Log.Name()))
		}
	}
}

// Ended kills a process and waits for its end.
func Ended(p *soft.Process) error {
	err := p.Signal(9)
	_, waited := p.Wait()
	return errors.Join(err, waited)
}

// MustNotStart starts the cluster's own authority program in the TEE, with a store and a first
// policy. It returns an error unless the program refuses to serve, for this reason.
func (c Checker) MustNotStart(ctx context.Context, dir, storeFile string, first policy.Step, reason wire.Reason) error {
	file := filepath.Join(dir, "first.toml")
	args := []string{"authority", "run", "--store", "sqlite:" + storeFile, "--listen", "127.0.0.1:0", "--genesis-policy", file}
	if err := os.WriteFile(file, first.Policy, 0o600); err != nil {
		return err
	}
	for i, sig := range first.Signatures {
		path := fmt.Sprintf("%s.%d.sig", file, i)
		if err := os.WriteFile(path, []byte(sig), 0o600); err != nil {
			return err
		}
		args = append(args, "--signature", path)
	}
	settings, err := localtee.CommandSettings(args)
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "first.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	return MustEndRefused(ctx, c.Cluster.TEE, localtee.Launch{Program: []string{c.Cluster.Agent}, Settings: settings, Stdout: log, Stderr: log}, reason)
}

// UnitAt returns the id of a unit, from its health pages.
func UnitAt(ctx context.Context, u dev.Unit) (id wire.UnitID, err error) {
	ctx, cancel := context.WithTimeout(ctx, StepTime)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.Health+"/livez", nil)
	if err != nil {
		return id, err
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return id, fmt.Errorf("unit %s: %w", u.Address, err)
	}
	response.Body.Close()
	return id, id.UnmarshalText([]byte(response.Header.Get(frame.UnitField)))
}

// RefusalTime limits the wait for the refusal of a unit or authority that must not start.
const RefusalTime = 20 * time.Second

// ClientPins returns the pins of the description for a client. The client's state file is in the
// folder of the root file.
func (c Checker) ClientPins() authorityclient.Pins {
	return authorityclient.Pins{
		Authorities: []string{c.Cluster.Authority}, Genesis: c.Cluster.Genesis, Task: c.Cluster.Task,
		State: filepath.Join(filepath.Dir(c.Cluster.Root), "seen.json"),
	}
}

// Trust returns the verified trust of a client of the SDK with the description's pins. It stores
// no state.
func (c Checker) Trust(ctx context.Context) (*client.Trust, error) {
	genesis, err := wire.ParseDigest(c.Cluster.Genesis)
	if err != nil {
		return nil, err
	}
	return client.FetchTrust(ctx, client.TrustConfig{
		Authorities: []string{c.Cluster.Authority}, Genesis: genesis, Task: c.Cluster.Task, Verifier: localtee.Verifier(), Clock: c.App.Now,
	})
}

// Verify checks that a verifying client finds the same identity at each address.
func (c Checker) Verify(ctx context.Context) (string, error) {
	t, err := c.Trust(ctx)
	if err != nil {
		return "", err
	}
	var id wire.Digest
	for _, u := range c.Cluster.Units {
		r, err := client.Verify(ctx, u.Address, client.Config{Trust: t, ServerName: c.Cluster.ServerName})
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

// AppendByte copies a program to dir, with one more byte at the end.
func AppendByte(path, dir string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "changed")
	return out, os.WriteFile(out, append(b, 0), 0o700)
}

// Newcomer is an additional unit of a check, not yet started.
type Newcomer struct {
	Launch localtee.Launch
	Listen string
	Health string
	Log    *os.File
}

// NewUnit prepares an additional unit of the cluster's task at an authority. The path in program
// replaces that of the cluster's program, whose arguments stay; flags are further flags of the
// unit.
func (c Checker) NewUnit(dir, authority string, program []string, flags ...string) (Newcomer, error) {
	list, err := dev.Addresses(0, 2)
	if err != nil {
		return Newcomer{}, err
	}
	settings, err := localtee.CommandSettings(append([]string{"unit", "--task", c.Cluster.Task, "--authority", authority,
		"--genesis", c.Cluster.Genesis, "--listen", list[0], "--health", list[1]}, flags...))
	if err != nil {
		return Newcomer{}, err
	}
	log, err := os.Create(filepath.Join(dir, "unit.log"))
	if err != nil {
		return Newcomer{}, err
	}
	l := localtee.Launch{Agent: c.Cluster.Agent, Program: append(program, c.Cluster.Program[1:]...), Settings: settings, Stdout: log, Stderr: log}
	return Newcomer{l, list[0], "http://" + list[1], log}, nil
}

// MustBeRefused launches the unit. It returns an error unless the unit ends with a refusal for
// this reason, and was never ready.
func (n Newcomer) MustBeRefused(ctx context.Context, socket string, reason wire.Reason) error {
	defer n.Log.Close()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	wasReady := n.watch(watching)
	if err := MustEndRefused(ctx, socket, n.Launch, reason); err != nil {
		return err
	}
	stop()
	if <-wasReady {
		return errors.New("the unit was ready before it was refused")
	}
	return nil
}

// watch sends, once ctx is done, whether the health pages ever reported that the unit is ready.
func (n Newcomer) watch(ctx context.Context) <-chan bool {
	was := make(chan bool, 1)
	go func() {
		ready := false
		for ctx.Err() == nil {
			if r, err := http.Get(n.Health + "/readyz"); err == nil {
				ready = ready || r.StatusCode == http.StatusOK
				r.Body.Close()
			}
			time.Sleep(20 * time.Millisecond)
		}
		was <- ready
	}()
	return was
}

// MustEndRefused runs a launch in the TEE, and returns an error unless it ends with a refusal
// for this reason. The launch must write its standard error to a file.
func MustEndRefused(ctx context.Context, socket string, l localtee.Launch, reason wire.Reason) error {
	ctx, cancel := context.WithTimeout(ctx, RefusalTime)
	defer cancel()
	p, err := l.Start(ctx, socket)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Signal(9) })
	defer stop()
	exit, err := p.Wait()
	if err != nil {
		return err
	}
	logged := dev.LogTail(l.Stderr.Name())
	if exit != (soft.Exit{Code: frame.ExitRefused}) || !strings.Contains(logged, "["+string(reason)+"]") {
		return fmt.Errorf("got %v, want a refusal [%s]; it printed: %s", exit, reason, logged)
	}
	return nil
}

// FileDigest returns the SHA-256 of a file.
func FileDigest(path string) (wire.Digest, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return wire.Digest{}, err
	}
	return wire.Sum(b), nil
}
