package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/jackc/pgx/v5"
)

// disk is a small file system of its own.
type disk struct{ dir string }

// newDisk makes a disk of size MiB, which requires root.
func newDisk(t *testing.T, size int) disk {
	t.Helper()
	dir, err := os.MkdirTemp("", "disk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	options := fmt.Sprintf("size=%dm", size)
	if nobody, err := user.Lookup("nobody"); err == nil { // the user of testdb's servers
		options += ",uid=" + nobody.Uid
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		t.Skipf("SKIPPED: no small disk can be mounted here: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	return disk{dir}
}

func (d disk) filler() string { return filepath.Join(d.dir, "filler") }

// fill uses all space of the disk.
func (d disk) fill(t *testing.T) {
	t.Helper()
	var all syscall.Statfs_t
	if err := syscall.Statfs(d.dir, &all); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.filler(), make([]byte, all.Bavail*uint64(all.Bsize)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// empty frees that space.
func (d disk) empty(t *testing.T) {
	t.Helper()
	if err := os.Remove(d.filler()); err != nil {
		t.Fatal(err)
	}
}

// recordUntilFull records issuances, starting with number from, until one is refused, and demands
// that all before it are stored. It returns the next number.
func recordUntilFull(t *testing.T, s *Store, from int) (next int) {
	t.Helper()
	var err error
	for next = from; err == nil && next < 10_000; next++ {
		err = s.Record(t.Context(), issuance(next))
	}
	testworld.Refused(t, err, wire.StoreFailed)
	if got := count(t, s); got != next-1 {
		t.Errorf("got %d rows on the full disk, want the %d acknowledged", got, next-1)
	}
	return next
}

// TestFullDisk fills the disk of an SQLite file. Acknowledged rows stay, and writes work again
// when the disk has space.
func TestFullDisk(t *testing.T) {
	d := newDisk(t, 2)
	s := fresh(t, "sqlite:"+filepath.Join(d.dir, "a.db"))
	d.fill(t)
	next := recordUntilFull(t, s, 0)
	d.empty(t)
	if err := s.Record(t.Context(), issuance(next)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestServerFull fills the disk of a server, first while its tables need space, then while its
// WAL does, which ends the server. Acknowledged rows stay, and writes work again afterwards.
func TestServerFull(t *testing.T) {
	d := newDisk(t, 120)
	t.Setenv("TMPDIR", d.dir)
	server := testdb.NewServer(t, "max_wal_size=32MB", "min_wal_size=32MB")
	dsn := server.Database(t)
	s := fresh(t, dsn)
	d.fill(t)
	next := recordUntilFull(t, s, 0)
	testworld.Refused(t, s.PutProposal(t.Context(), Row{Key: []byte("p"), Content: noise(1 << 20), MAC: []byte("tag")}, believed), wire.StoreFailed)
	d.empty(t)
	if err := s.Record(t.Context(), issuance(next)); err != nil {
		t.Fatalf("with room again: %v", err)
	}
	want := count(t, s)

	d.fill(t)
	useUpLog(t, dsn)
	testworld.Refused(t, s.Record(t.Context(), issuance(next+1)), wire.StoreFailed)
	d.empty(t)
	if err := errors.Join(server.Kill(), server.Start()); err != nil {
		t.Fatal(err)
	}
	if got := count(t, reopen(t, dsn)); got != want {
		t.Errorf("got %d rows of a server that had no room for its WAL, want the %d acknowledged", got, want)
	}
	if err := s.Record(t.Context(), issuance(next+2)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// useUpLog makes a server switch WAL segments until it has no space for another.
func useUpLog(t *testing.T, dsn string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	for range 20 { // more segments than the server keeps ready
		if _, err = c.Exec(t.Context(), `SELECT pg_logical_emit_message(true, 'test', 'x'), pg_switch_wal()`); err != nil {
			return
		}
	}
	t.Fatal("the server had room for its WAL")
}

// noise returns bytes that no database can compress.
func noise(size int) []byte {
	b := make([]byte, size)
	rand.Read(b)
	return b
}
