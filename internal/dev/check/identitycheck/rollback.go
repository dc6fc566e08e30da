package identitycheck

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
	"github.com/cohort-tee/cohort/internal/authorityclient"
	"github.com/cohort-tee/cohort/internal/cli/localtee"
	"github.com/cohort-tee/cohort/internal/dev"
	"github.com/cohort-tee/cohort/internal/dev/check"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// rollback is an authority whose host replaces its store. It starts several times at one
// address.
type rollback struct {
	cluster
	checker check.Checker
	end     context.CancelFunc
	ended   chan error
}

// RolledBackStore checks a second authority in the same TEE, whose host restores first one table
// and then the whole store from an older copy. After the first, the authority must issue no
// certificates and report the cause, until it receives the signed files. After the second, in
// which a different policy is adopted, it must report the contradiction permanently once it
// receives the other history.
func RolledBackStore(ctx context.Context, c check.Checker) (_ string, err error) {
	dir, err := os.MkdirTemp("", "cohort-rollback-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	other, err := otherCluster(ctx, c, dir)
	if err != nil {
		return "", err
	}
	r := &rollback{cluster: other, checker: c}
	defer func() { err = errors.Join(err, r.stopBoth()) }()
	if err := errors.Join(r.InitAuthority(ctx), r.SignGenesis(ctx)); err != nil {
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

// startAuthority starts the authority on the current store, and returns a client of it.
func (r *rollback) startAuthority(ctx context.Context, more ...string) (authorityclient.Client, error) {
	args := append([]string{"authority", "run", "--store", "sqlite:" + r.StoreFile(), "--listen", strings.TrimPrefix(r.Doc.Authority, "https://"),
		"--genesis-policy", r.GenesisFile()}, more...)
	signatures, err := filepath.Glob(r.GenesisFile() + ".*.sig")
	if err != nil {
		return authorityclient.Client{}, err
	}
	for _, path := range signatures {
		args = append(args, "--signature", path)
	}
	running, end := context.WithCancel(ctx)
	c := r.NewChild("authority", r.Measured(localtee.Launch{Program: []string{r.Bin.Cohort}}, args))
	r.end, r.ended = end, make(chan error, 1)
	go func() { r.ended <- c.RunOnce(running) }()
	genesis, err := wire.ParseDigest(r.Doc.Genesis)
	if err != nil {
		return authorityclient.Client{}, err
	}
	var found authorityclient.Client
	return found, c.Await(ctx, func(ctx context.Context) error {
		var err error
		found, err = authorityclient.DialAt(ctx, r.App, r.Doc.Authority, genesis)
		return err
	})
}

// endAuthority ends the authority with SIGTERM and waits for its end.
func (r *rollback) endAuthority() {
	if r.end != nil {
		r.end()
		<-r.ended
		r.end = nil
	}
}

func (r *rollback) stopBoth() error {
	r.endAuthority()
	return r.cluster.Stop()
}

// awaitUnitLog runs a unit of the authority. If want is empty it waits until the unit is ready,
// otherwise until the unit's log contains want while it is not ready.
func (r *rollback) awaitUnitLog(ctx context.Context, want string) error {
	ctx, cancel := context.WithTimeout(ctx, check.RefusalTime)
	defer cancel()
	u := r.Doc.Units[0]
	args := []string{"unit", "--task", r.Doc.Task, "--authority", r.Doc.Authority, "--genesis", r.Doc.Genesis,
		"--listen", u.Address, "--health", strings.TrimPrefix(u.Health, "http://")}
	c := r.NewChild("unit", r.Measured(localtee.Launch{Agent: r.Bin.Cohort, Program: r.Doc.Program}, args))
	if err := os.RemoveAll(c.Log); err != nil {
		return err
	}
	running, end := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.RunOnce(running) }()
	defer func() { end(); <-ended }()
	for {
		ready := false
		if response, err := http.Get(u.Health + api.PathReady); err == nil {
			ready = response.StatusCode == http.StatusOK
			response.Body.Close()
		}
		logged := strings.Contains(dev.LogTail(c.Log), want)
		switch {
		case want == "" && ready, want != "" && logged && !ready:
			return nil
		case want != "" && ready:
			return fmt.Errorf("a unit became ready, want it refused with %s", want)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("a unit neither became ready nor logged %q: %s", want, dev.LogTail(c.Log))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// yesterday copies the store, and then makes owners adopt a policy and a unit enrol under it. It
// returns the resulting history, and writes it to a file.
func (r *rollback) yesterday(ctx context.Context) (api.History, error) {
	if _, err := r.startAuthority(ctx); err != nil {
		return api.History{}, err
	}
	r.endAuthority()
	if err := copyDatabase(r.StoreFile(), r.copied()); err != nil {
		return api.History{}, err
	}
	a, err := r.startAuthority(ctx)
	if err != nil {
		return api.History{}, err
	}
	defer a.Close()
	defer r.endAuthority()
	if err := r.anotherPolicy(ctx, "a"); err != nil {
		return api.History{}, err
	}
	if err := r.awaitUnitLog(ctx, ""); err != nil {
		return api.History{}, err
	}
	file, err := authorityclient.History(ctx, a)
	if err != nil {
		return api.History{}, err
	}
	if err := os.WriteFile(r.historyFile(), file, 0o600); err != nil {
		return api.History{}, err
	}
	return a.History(ctx, 0)
}

func (r *rollback) copied() string { return r.StoreFile() + ".yesterday" }

func (r *rollback) historyFile() string { return filepath.Join(r.State, "history.json") }

// anotherPolicy makes owners adopt a release with different code.
func (r *rollback) anotherPolicy(ctx context.Context, name string) error {
	dir := filepath.Join(r.State, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	program, err := os.ReadFile(r.Doc.Program[0])
	if err != nil {
		return err
	}
	changed := filepath.Join(dir, "changed")
	if err := os.WriteFile(changed, append(program, name...), 0o700); err != nil {
		return err
	}
	m, err := localtee.Measure(r.Bin.Cohort, append([]string{changed}, r.Doc.Program[1:]...))
	if err != nil {
		return err
	}
	return check.Approve(ctx, r.Cluster, 2, m)
}

// oneTable deletes the newest policy from the database but not from the log, and checks that the
// authority refuses to issue certificates.
func (r *rollback) oneTable(ctx context.Context) error {
	db, err := sql.Open("sqlite", r.StoreFile())
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, `DELETE FROM history WHERE step = (SELECT max(step) FROM history); DELETE FROM proposals`)
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	a, err := r.startAuthority(ctx)
	if err != nil {
		return err
	}
	defer a.Close()
	defer r.endAuthority()
	if _, err := a.Ready(ctx); !errors.Is(err, wire.Behind) {
		return fmt.Errorf("its probe: got %v, want a refusal [%s]", err, wire.Behind)
	}
	fooled := r.checker
	fooled.Cluster = r.Doc
	if _, err := fooled.Trust(ctx); !errors.Is(err, wire.Behind) {
		return fmt.Errorf("a client: got %v, want a refusal [%s]", err, wire.Behind)
	}
	return r.awaitUnitLog(ctx, string(wire.Behind))
}

// healed starts the authority with the signed files, and checks that the lost policy is in force
// again.
func (r *rollback) healed(ctx context.Context) error {
	a, err := r.startAuthority(ctx, "--history", r.historyFile())
	if err != nil {
		return err
	}
	defer a.Close()
	defer r.endAuthority()
	h, err := a.Ready(ctx)
	if err != nil || len(h.Warnings) > 0 {
		return fmt.Errorf("its probe: got %+v, %v, want ready without a warning", h, err)
	}
	if got := a.Approved.Document().Sequence; got != 2 {
		return fmt.Errorf("got policy %d in force, want 2", got)
	}
	return r.awaitUnitLog(ctx, "")
}

// wholeStore restores the whole older store, which is consistent, and makes owners adopt a
// different policy there. It checks that a client that has seen the first policy refuses the
// authority, and that after any client submits the first history the authority reports the
// contradiction permanently.
func (r *rollback) wholeStore(ctx context.Context, newest api.History) error {
	if err := copyDatabase(r.copied(), r.StoreFile()); err != nil {
		return err
	}
	a, err := r.startAuthority(ctx)
	if err != nil {
		return err
	}
	defer func() { a.Close(); r.endAuthority() }()
	if err := r.anotherPolicy(ctx, "b"); err != nil {
		return err
	}
	genesis, err := wire.ParseDigest(r.Doc.Genesis)
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
	forked, err := authorityclient.DialAt(ctx, r.App, r.Doc.Authority, genesis)
	if err != nil {
		return err
	}
	defer forked.Close()
	if err := forked.Knows(seen); !errors.Is(err, wire.Behind) {
		return fmt.Errorf("a client that has seen the first policy: got %v, want a refusal [%s]", err, wire.Behind)
	}
	if _, err := forked.PushHistory(ctx, newest); !errors.Is(err, wire.WrongSequence) {
		return fmt.Errorf("showing the first policy: got %v, want a refusal [%s]", err, wire.WrongSequence)
	}
	for range 2 { // the report must survive a restart
		h, err := forked.Ready(ctx)
		if err != nil || len(h.Contradictions) != 1 || h.Contradictions[0].Kept != forked.Approved.PolicyHead() || h.Contradictions[0].Other != newest.Head {
			return fmt.Errorf("its probe: got %+v, %v, want ready, and the heads %s and %s", h, err, forked.Approved.PolicyHead(), newest.Head)
		}
		r.endAuthority()
		if a, err = r.startAuthority(ctx); err != nil {
			return err
		}
	}
	return nil
}

// copyDatabase copies an SQLite database that no process has open.
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
