package store

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// TestFile makes a store in a file with an unusual name; only its owner can read it.
func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "odd name?%20#.db")
	fresh(t, "sqlite:"+file)
	reopen(t, "sqlite:"+file)
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, %v, want 0600", info.Mode(), err)
	}
}

// TestDurable: the settings of the writer's connection make a commit wait for the disk.
func TestDurable(t *testing.T) {
	s := fresh(t, inFile(t))
	for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal"} {
		var got string
		if err := s.session.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("got %s %q, %v, want %q", pragma, got, err, want)
		}
	}
}

// TestFaults breaks the disk: the write returns an error and leaves no row. After the fault the
// same write succeeds.
func TestFaults(t *testing.T) {
	faults := []struct {
		name        string
		break_, fix string // statements for the writer's connection
	}{
		{"full", `PRAGMA max_page_count = 1`, `PRAGMA max_page_count = 1000000`},
		{"read-only", `PRAGMA query_only = 1`, `PRAGMA query_only = 0`},
	}
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			s := fresh(t, inFile(t))
			big := issuance(1)
			big.Content = make([]byte, 1<<20)
			s.pragma(t, fault.break_)
			testworld.Refused(t, s.Record(t.Context(), big), wire.StoreFailed)
			if got := count(t, s); got != 0 {
				t.Errorf("got %d rows after a failed write, want 0", got)
			}
			s.pragma(t, fault.fix)
			if err := s.Record(t.Context(), big); err != nil {
				t.Errorf("after the fault: %v", err)
			}
		})
	}
}

// pragma runs a statement on the writer's connection. It runs between transactions, when the
// writer does not use the connection.
func (s *Store) pragma(t *testing.T, statement string) {
	t.Helper()
	if s.session == nil {
		return // the broken connection was closed, and its pragma with it
	}
	if _, err := s.session.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// TestReadOnlyDisk: a store on a read-only disk is refused, and opens when the disk is writable
// again.
func TestReadOnlyDisk(t *testing.T) {
	dir := newDisk(t, 8).dir
	made, err := Create(t.Context(), "sqlite:"+filepath.Join(dir, "a.db"))
	if err == nil {
		err = errors.Join(made.CreateRoot(t.Context(), row("root")), made.Append(t.Context(), wire.Digest{}, step(1)), made.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	remount := func(flags uintptr) {
		if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|flags, "size=8m"); err != nil {
			t.Fatal(err)
		}
	}
	remount(syscall.MS_RDONLY)
	_, err = Open(t.Context(), "sqlite:"+filepath.Join(dir, "a.db"))
	testworld.Refused(t, err, wire.StoreFailed)
	remount(0)
	s := reopen(t, "sqlite:"+filepath.Join(dir, "a.db"))
	if err := s.Record(t.Context(), issuance(1)); err != nil {
		t.Error(err)
	}
}

// TestLocked: while another process has the write lock, a write is refused; afterwards it
// succeeds.
func TestLocked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.db")
	s := fresh(t, "sqlite:"+file)
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	testworld.Refused(t, s.Record(t.Context(), issuance(1)), wire.StoreFailed)
	if _, err := db.Exec("ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := s.Record(t.Context(), issuance(1)); err != nil {
		t.Error(err)
	}
}

// TestLeaseOfTheDead: a lease that was not released ends with the last process that uses the
// database, and not before.
func TestLeaseOfTheDead(t *testing.T) {
	dsn := "sqlite:" + filepath.Join(t.TempDir(), "store.db")
	lease := Row{Key: []byte("rings"), Content: []byte("holder"), MAC: []byte("tag")}
	t.Run("held", func(t *testing.T) {
		holder := fresh(t, dsn)
		if err := holder.SwapLease(t.Context(), Row{}, lease); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			got, err := reopen(t, dsn).Lease(t.Context(), "rings")
			check(t, "lease while others use the database", err, got, lease)
		}
	})
	got, err := reopen(t, dsn).Lease(t.Context(), "rings")
	check(t, "lease when nobody did", err, got, Row{})
}
