package authority

import (
	"context"
	"database/sql"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/backup"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Environment variables of this test binary when a test runs it as a child: killAt is the step of
// a restore at which it kills itself, killDir the directory it works in.
const (
	killAt  = "COHORT_TEST_KILL_AT"
	killDir = "COHORT_TEST_KILL_DIR"
)

// killPoints are the steps: before and after each call to the TEE, and when a row of each table
// is on disk.
var killPoints = []string{
	"before unseal", "after unseal", "before attest", "after attest", "before seal", "after seal",
	"row of history", "row of backup", "row of root",
}

func die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// fatal is a TEE that kills its process, or refuses, at a step.
type fatal struct {
	attest.Attester
	attest.Sealer
	at  string
	end func() error
}

func (f fatal) step(name string) error {
	if f.at == name {
		return f.end()
	}
	return nil
}

// around runs one call to the TEE between its "before" and "after" steps.
func around[T any](f fatal, name string, call func() (T, error)) (T, error) {
	var none T
	if err := f.step("before " + name); err != nil {
		return none, err
	}
	v, err := call()
	if err == nil {
		err = f.step("after " + name)
	}
	return v, err
}

func (f fatal) Attest(ctx context.Context, data attest.ReportData) (attest.Evidence, error) {
	return around(f, "attest", func() (attest.Evidence, error) { return f.Attester.Attest(ctx, data) })
}

func (f fatal) Seal(ctx context.Context, secret []byte, to []attest.ReferenceValue) ([]byte, error) {
	return around(f, "seal", func() ([]byte, error) { return f.Sealer.Seal(ctx, secret, to) })
}

func (f fatal) Unseal(ctx context.Context, sealed []byte) ([]byte, error) {
	return around(f, "unseal", func() ([]byte, error) { return f.Sealer.Unseal(ctx, sealed) })
}

// restorable returns a good restoration into dsn.
func (w *world) restorable(dsn string) RestoreConfig {
	w.T.Helper()
	a := w.open()
	shares := w.split(a)
	r := w.restoration(a, "authority")
	r.config.Shares = []backup.Share{testworld.Must(r.unlock(a, shares[0])), testworld.Must(r.unlock(a, shares[1]))}
	r.config.Store = testworld.Must(store.Create(w.T.Context(), dsn))
	w.T.Cleanup(func() { r.config.Store.Close() })
	return r.config
}

// TestRestoreKilled kills a restore at each step. The store then has no root, and no authority
// opens it, or it is complete.
func TestRestoreKilled(t *testing.T) {
	if at := os.Getenv(killAt); at != "" {
		restoreAndDie(t, at, "sqlite:"+filepath.Join(os.Getenv(killDir), "restored.db"))
		return
	}
	for _, at := range killPoints {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cmd := osexec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestRestoreKilled$")
			cmd.Env = append(os.Environ(), killAt+"="+at, killDir+"="+dir)
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("got %v, want a killed process; it said:\n%s", err, out)
			}
			wantAllOrNothing(t, "sqlite:"+filepath.Join(dir, "restored.db"), at == "row of root")
		})
	}
}

func restoreAndDie(t *testing.T, at, dsn string) {
	c := newWorld(t).restorable(dsn)
	tee := fatal{c.Attester, c.Sealer, at, func() error { die(); return nil }}
	c.Attester, c.Sealer = tee, tee
	if table, ok := strings.CutPrefix(at, "row of "); ok {
		go dieWith(t, raw(t, dsn), table)
	}
	_, err := Restore(t.Context(), c)
	if strings.HasPrefix(at, "row of ") {
		select {} // dieWith sees the row and kills the process
	}
	t.Errorf("got to the end, %v, without %s", err, at)
}

// dieWith kills the process when a table has a row.
func dieWith(t *testing.T, db *sql.DB, table string) {
	for {
		var rows int
		if err := db.QueryRowContext(t.Context(), `SELECT count(*) FROM `+table).Scan(&rows); err == nil && rows > 0 {
			die()
		}
	}
}

// wantAllOrNothing demands that a store with a root is complete, and that a store without one is
// refused.
func wantAllOrNothing(t *testing.T, dsn string, mustBeWhole bool) {
	t.Helper()
	db, err := store.Open(t.Context(), dsn)
	if err != nil {
		if mustBeWhole {
			t.Errorf("got %v, want the whole store", err)
		}
		testworld.Refused(t, err, wire.StoreForeign)
		return
	}
	defer db.Close()
	steps, err := db.Steps(t.Context())
	kept, keptErr := db.Backup(t.Context())
	if err != nil || keptErr != nil || len(steps) != 1 || kept.MAC == nil {
		t.Errorf("got a root with %d steps and backup record %x (%v, %v), want all or nothing", len(steps), kept.Key, err, keptErr)
	}
}

// TestRestoreAgain breaks a restore at each step, removes the fault, and runs the restore again
// on the same store. It succeeds.
func TestRestoreAgain(t *testing.T) {
	for _, at := range killPoints {
		t.Run(at, func(t *testing.T) {
			w := newWorld(t)
			dsn := "sqlite:" + filepath.Join(t.TempDir(), "restored.db")
			c := w.restorable(dsn)
			broken := c
			tee := fatal{c.Attester, c.Sealer, at, func() error { return os.ErrClosed }}
			broken.Attester, broken.Sealer = tee, tee
			mend := func() {}
			if table, rows := strings.CutPrefix(at, "row of "); rows {
				mend = refuseRows(t, dsn, table)
			}
			if _, err := Restore(t.Context(), broken); err == nil {
				t.Fatal("got no error of a broken restore")
			}
			wantAllOrNothing(t, dsn, false)
			mend()
			if root, err := Restore(t.Context(), c); err != nil || root != w.root {
				t.Errorf("got root %v, %v the second time, want %v", root, err, w.root)
			}
			wantAllOrNothing(t, dsn, true)
		})
	}
}

// refuseRows makes a table of the store refuse new rows until mend is called.
func refuseRows(t *testing.T, dsn, table string) (mend func()) {
	t.Helper()
	broken := `CREATE TRIGGER broken BEFORE INSERT ON ` + table + ` BEGIN SELECT RAISE(ABORT, 'broken'); END`
	mended := `DROP TRIGGER broken`
	if !strings.HasPrefix(dsn, "sqlite:") {
		broken = `ALTER TABLE ` + table + ` ADD CONSTRAINT broken CHECK (false) NOT VALID`
		mended = `ALTER TABLE ` + table + ` DROP CONSTRAINT broken`
	}
	exec(t, dsn, broken)
	return func() { exec(t, dsn, mended) }
}

// TestBackupRecordFails: shares whose record could not be written are no backup. Confirming one
// of them again records the backup.
func TestBackupRecordFails(t *testing.T) {
	w := newWorld(t)
	a := w.open()
	share := w.split(a)[0]
	mend := refuseRows(t, w.dsn, "backup")
	_, err := a.backupKept(t.Context(), api.BackupKept{Share: share.Bytes()})
	testworld.Refused(t, err, wire.StoreFailed)
	if got := testworld.Must(a.backupState(t.Context())); got.State != api.BackupNone {
		t.Errorf("got state %q, want none", got.State)
	}
	mend()
	if got := testworld.Must(a.backupKept(t.Context(), api.BackupKept{Share: share.Bytes()})); got.State != api.BackupCurrent {
		t.Errorf("got state %q, want current", got.State)
	}
}
