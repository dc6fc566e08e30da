package cli

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// rollback is an authority whose host does with its store what it likes, one start after
// the other at one address.
type rollback struct {
	*dev
	checker checker
	end     context.CancelFunc
	ended   chan error
}

// rolledBackStore: the host of another authority in the same TEE puts one table of yesterday
// back, and then the whole store. The authority issues nothing and names the cause, until it is shown the signed
// files; where another policy took effect meanwhile, it reports that for good.
func (c checker) rolledBackStore(ctx context.Context) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-rollback-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	other, err := c.otherCluster(ctx, dir)
	if err != nil {
		return "", err
	}
	r := &rollback{dev: other, checker: c}
	defer func() { err = errors.Join(err, r.stop()) }()
	if err := errors.Join(r.initAuthority(ctx), r.signGenesis(ctx)); err != nil {
		return "", err
	}
	newest, err := r.yesterday(ctx)
	if err != nil {
		return "", fmt.Errorf("preparing: %w", err)
	}
	if err := r.oneTable(ctx); err != nil {
		return "", fmt.Errorf("one table put back: %w", err)
	}
	if err := r.healed(ctx); err != nil {
		return "", fmt.Errorf("shown the signed files: %w", err)
	}
	if err := r.wholeStore(ctx, newest); err != nil {
		return "", fmt.Errorf("the whole store put back: %w", err)
	}
	return "one table back: nothing issued [behind], healed by --history; a fork: ready with a warning, both heads kept", nil
}

// run starts the authority on the store as it is, and gives a client that was checked.
func (r *rollback) run(ctx context.Context, more ...string) (authorityClient, error) {
	args := append([]string{"authority", "run", "--store", "sqlite:" + r.storeFile(), "--listen", strings.TrimPrefix(r.cluster.Authority, "https://"),
		"--genesis-policy", r.genesisFile()}, more...)
	signatures, err := filepath.Glob(r.genesisFile() + ".*.sig")
	if err != nil {
		return authorityClient{}, err
	}
	for _, path := range signatures {
		args = append(args, "--signature", path)
	}
	running, end := context.WithCancel(ctx)
	c := r.newChild("authority", r.measured(launch{program: []string{r.bin.cohort}}, args))
	r.end, r.ended = end, make(chan error, 1)
	go func() { r.ended <- c.runOnce(running) }()
	genesis, err := wire.ParseDigest(r.cluster.Genesis)
	if err != nil {
		return authorityClient{}, err
	}
	var found authorityClient
	return found, c.await(ctx, func(ctx context.Context) error {
		var err error
		found, err = r.app.authorityAt(ctx, r.cluster.Authority, genesis)
		return err
	})
}

// halt ends the authority in good order.
func (r *rollback) halt() {
	if r.end != nil {
		r.end()
		<-r.ended
		r.end = nil
	}
}

func (r *rollback) stop() error {
	r.halt()
	return r.dev.stop()
}

// unitSays runs a unit of the authority until it is ready, or until its log holds what is wanted.
func (r *rollback) unitSays(ctx context.Context, want string) error {
	ctx, cancel := context.WithTimeout(ctx, refusalTime)
	defer cancel()
	u := r.cluster.Units[0]
	args := []string{"unit", "--task", r.cluster.Task, "--authority", r.cluster.Authority, "--genesis", r.cluster.Genesis,
		"--listen", u.Address, "--health", strings.TrimPrefix(u.Health, "http://")}
	c := r.newChild("unit", r.measured(launch{agent: r.bin.cohort, program: r.cluster.Program}, args))
	if err := os.RemoveAll(c.log); err != nil {
		return err
	}
	running, end := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.runOnce(running) }()
	defer func() { end(); <-ended }()
	for {
		ready := false
		if answer, err := http.Get(u.Health + api.PathReady); err == nil {
			ready = answer.StatusCode == http.StatusOK
			answer.Body.Close()
		}
		said := strings.Contains(tail(c.log), want)
		switch {
		case want == "" && ready, want != "" && said && !ready:
			return nil
		case want != "" && ready:
			return fmt.Errorf("a unit became ready, want it refused with %s", want)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a unit neither became ready nor logged %q: %s", want, tail(c.log))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// yesterday keeps a copy of the store, and has owners adopt a policy and a unit enrol under
// it. It gives the history as it then is, and leaves it in a file.
func (r *rollback) yesterday(ctx context.Context) (api.History, error) {
	if _, err := r.run(ctx); err != nil {
		return api.History{}, err
	}
	r.halt()
	if err := copyDatabase(r.storeFile(), r.copied()); err != nil {
		return api.History{}, err
	}
	a, err := r.run(ctx)
	if err != nil {
		return api.History{}, err
	}
	defer a.Close()
	defer r.halt()
	if err := r.anotherPolicy(ctx, "a"); err != nil {
		return api.History{}, err
	}
	if err := r.unitSays(ctx, ""); err != nil {
		return api.History{}, err
	}
	file, err := wholeHistory(ctx, a)
	if err != nil {
		return api.History{}, err
	}
	if err := os.WriteFile(r.historyFile(), file, 0o600); err != nil {
		return api.History{}, err
	}
	return a.History(ctx, 0)
}

func (r *rollback) copied() string      { return r.storeFile() + ".yesterday" }
func (r *rollback) historyFile() string { return filepath.Join(r.state, "history.json") }

// anotherPolicy has owners adopt a release with other code.
func (r *rollback) anotherPolicy(ctx context.Context, name string) error {
	dir := filepath.Join(r.state, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	program, err := os.ReadFile(r.cluster.Program[0])
	if err != nil {
		return err
	}
	changed := filepath.Join(dir, "changed")
	if err := os.WriteFile(changed, append(program, name...), 0o700); err != nil {
		return err
	}
	m, err := measure(r.bin.cohort, append([]string{changed}, r.cluster.Program[1:]...))
	if err != nil {
		return err
	}
	return approve(ctx, r.dev, 2, m)
}

// oneTable takes the newest policy out of the database, and leaves the log, which names it.
func (r *rollback) oneTable(ctx context.Context) error {
	db, err := sql.Open("sqlite", r.storeFile())
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, `DELETE FROM history WHERE step = (SELECT max(step) FROM history); DELETE FROM proposals`)
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	a, err := r.run(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	defer r.halt()
	if _, err := a.Ready(ctx); !errors.Is(err, wire.Behind) {
		return fmt.Errorf("its probe: got %v, want a refusal [%s]", err, wire.Behind)
	}
	fooled := r.checker
	fooled.cluster = r.cluster
	if _, err := fooled.trust(ctx); !errors.Is(err, wire.Behind) {
		return fmt.Errorf("a client: got %v, want a refusal [%s]", err, wire.Behind)
	}
	return r.unitSays(ctx, string(wire.Behind))
}

// healed shows the signed files at a start. What was lost is in force again.
func (r *rollback) healed(ctx context.Context) error {
	a, err := r.run(ctx, "--history", r.historyFile())
	if err != nil {
		return err
	}
	defer a.Close()
	defer r.halt()
	h, err := a.Ready(ctx)
	if err != nil || len(h.Warnings) > 0 {
		return fmt.Errorf("its probe: got %+v, %v, want ready without a warning", h, err)
	}
	if got := a.policy.Document().Sequence; got != 2 {
		return fmt.Errorf("got policy %d in force, want 2", got)
	}
	return r.unitSays(ctx, "")
}

// wholeStore serves yesterday's store, in which nothing shows it, and has another policy adopted there. A client
// that has seen the first one refuses it; once any caller shows that one, the alarm stays.
func (r *rollback) wholeStore(ctx context.Context, newest api.History) error {
	if err := copyDatabase(r.copied(), r.storeFile()); err != nil {
		return err
	}
	a, err := r.run(ctx)
	if err != nil {
		return err
	}
	defer func() { a.Close(); r.halt() }()
	if err := r.anotherPolicy(ctx, "b"); err != nil {
		return err
	}
	genesis, err := wire.ParseDigest(r.cluster.Genesis)
	if err != nil {
		return err
	}
	steps := make([]policy.Step, len(newest.Entries))
	for i, e := range newest.Entries {
		steps[i] = policy.Step{Policy: e.Policy, Signatures: e.Signatures}
	}
	seen, err := policy.Replay(genesis, steps)
	if err != nil {
		return err
	}
	forked, err := r.app.authorityAt(ctx, r.cluster.Authority, genesis)
	if err != nil {
		return err
	}
	defer forked.Close()
	if err := forked.knows(seen); !errors.Is(err, wire.Behind) {
		return fmt.Errorf("a client that has seen the first policy: got %v, want a refusal [%s]", err, wire.Behind)
	}
	if _, err := forked.PushHistory(ctx, newest); !errors.Is(err, wire.WrongSequence) {
		return fmt.Errorf("showing the first policy: got %v, want a refusal [%s]", err, wire.WrongSequence)
	}
	for range 2 { // the alarm outlives the process
		h, err := forked.Ready(ctx)
		if err != nil || len(h.Contradictions) != 1 || h.Contradictions[0].Kept != forked.policy.Head() || h.Contradictions[0].Other != newest.Head {
			return fmt.Errorf("its probe: got %+v, %v, want ready, and the heads %s and %s", h, err, forked.policy.Head(), newest.Head)
		}
		r.halt()
		if a, err = r.run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// copyDatabase copies an SQLite database that no process uses.
func copyDatabase(from, to string) error {
	for _, end := range []string{"", "-wal", "-shm"} {
		b, err := os.ReadFile(from + end)
		if errors.Is(err, os.ErrNotExist) {
			err = os.RemoveAll(to + end)
		} else if err == nil {
			err = os.WriteFile(to+end, b, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
