package authority

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/attest/attesttest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// storeFault makes a store with functions that break and heal it.
type storeFault struct {
	name string
	make func(t *testing.T) (dsn string, broke, heal func() error)
}

// storeFaults are faults of stores. The tests of package store also cover a read-only disk and a
// full one.
var storeFaults = []storeFault{
	{"a file that is locked", func(t *testing.T) (string, func() error, func() error) { return locked(t, newDSN(t)) }},
	{"a full disk", fullDisk},
	{"a server's tables that are locked", func(t *testing.T) (string, func() error, func() error) { return locked(t, testdb.Database(t)) }},
	{"a server that may only be read", func(t *testing.T) (string, func() error, func() error) {
		server := testdb.NewServer(t, "fsync=off")
		dsn := server.Database(t)
		set := func(value string) func() error {
			return func() error {
				testdb.ExecStatement(t, dsn, "ALTER SYSTEM SET default_transaction_read_only = "+value)
				testdb.ExecStatement(t, dsn, "SELECT pg_reload_conf()")
				return nil
			}
		}
		return dsn, set("on"), set("off")
	}},
	{"a server that is gone", func(t *testing.T) (string, func() error, func() error) {
		server := testdb.NewServer(t, "fsync=off")
		return server.Database(t), server.Kill, server.Start
	}},
}

func locked(t *testing.T, dsn string) (string, func() error, func() error) {
	var unlock func()
	return dsn, func() error { unlock = lockStore(t, dsn); return nil }, func() error { unlock(); return nil }
}

func fullDisk(t *testing.T) (string, func() error, func() error) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mounting a small disk: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	filler := filepath.Join(dir, "filler")
	full := func() error {
		if err := os.WriteFile(filler, make([]byte, 8<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		return nil
	}
	return "sqlite:" + filepath.Join(dir, "a.db"), full, func() error { return os.Remove(filler) }
}

// TestStoreFaults breaks the store for a minute. Nothing is issued without a durable record, and
// the authority issues again by itself once the store is healed.
func TestStoreFaults(t *testing.T) {
	if os.Getenv(onServer) != "" {
		t.Skip("it has stores of its own")
	}
	for _, fault := range storeFaults {
		t.Run(fault.name, func(t *testing.T) {
			t.Parallel() // these tests mostly wait
			dsn, broke, heal := fault.make(t)
			vendor := attesttest.NewVendor()
			w := newWorldAt(t, dsn, vendor, vendor.Chip())
			a, p := w.open(), w.scoring()
			testworld.Must(w.asks(a))
			if err := broke(); err != nil {
				t.Fatal(err)
			}
			answered := 1
			var err error
			ask := func() error {
				_, err := a.certify(t.Context(), p.request(testworld.Must(a.challenge(api.ChallengeRequest{})).Nonce, nil), "")
				return err
			}
			for ; err == nil && answered < 500; answered++ { // a full disk may still have room for some rows
				err = ask()
			}
			testworld.Refused(t, err, wire.StoreFailed)
			w.clock.Advance(time.Minute)
			err = ask()
			testworld.Refused(t, err, wire.StoreFailed)
			if err := heal(); err != nil {
				t.Fatal(err)
			}
			for range 5 { // each old connection breaks at its next use
				if err = ask(); err == nil {
					break
				}
			}
			if err != nil {
				t.Errorf("another request, once the store is healed: %v", err)
			}
			if got := issued(t, a); got != answered {
				t.Errorf("got %d records of %d answers", got, answered)
			}
		})
	}
}
