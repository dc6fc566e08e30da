package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/cohort-tee/cohort/internal/wire"
)

// fresh makes a store with a root and one step of history.
func fresh(t testing.TB, file string) *Store {
	t.Helper()
	s, err := Create(t.Context(), "sqlite:"+file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	if err := s.CreateRoot(t.Context(), row("root")); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), wire.Digest{}, step(1)); err != nil {
		t.Fatal(err)
	}
	return s
}

func reopen(t testing.TB, file string) *Store {
	t.Helper()
	s, err := Open(t.Context(), "sqlite:"+file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func row(name string) Row {
	return Row{Key: []byte(name), Content: []byte("content of " + name), MAC: []byte("tag of " + name)}
}

// head is the head after the n-th step.
func head(n int) wire.Digest { return wire.Sum(fmt.Append(nil, "head ", n)) }

func step(n int) Row {
	h := head(n)
	return Row{Key: h[:], Content: fmt.Append(nil, "step ", n), MAC: []byte("tag")}
}

// issuance is the n-th: its own nonce, unit, serial and certificate, after the
// first step.
func issuance(n int) Issuance {
	return Issuance{
		Entry:  Entry{Row: row(fmt.Sprint("nonce ", n)), Task: "scoring", Unit: fmt.Sprint("unit ", n)},
		Serial: fmt.Sprint("serial ", n), Certificate: wire.Sum(fmt.Append(nil, n)), Head: head(1),
	}
}

func wantReason(t testing.TB, err error, want wire.Reason) {
	t.Helper()
	if got := wire.ReasonOf(err); err == nil || got != want {
		t.Errorf("got error %v (reason %q), want reason %q", err, got, want)
	}
}

func count(t testing.TB, s *Store) int {
	t.Helper()
	page, err := s.Log(t.Context(), Query{Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return len(page)
}

func TestRoundTrip(t *testing.T) {
	file := filepath.Join(t.TempDir(), "odd name?%20#.db")
	s := fresh(t, file)
	if err := s.Record(t.Context(), issuance(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.AddProposal(t.Context(), row("p")); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, file)
	root, err := s.Root(t.Context())
	check(t, "root", err, root, row("root"))
	steps, err := s.Steps(t.Context())
	check(t, "history", err, steps[0], step(1))
	proposals, err := s.Proposals(t.Context())
	check(t, "proposals", err, proposals[0], row("p"))
	page, err := s.Log(t.Context(), Query{Limit: 9})
	check(t, "log", err, page[0].Row, issuance(1).Row)
	if got, err := s.Head(t.Context()); err != nil || got != head(1) {
		t.Errorf("got head %v, %v, want %v", got, err, head(1))
	}
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got mode %v, %v, want 0600", info.Mode(), err)
	}
}

func check(t *testing.T, what string, err error, got, want Row) {
	t.Helper()
	if err != nil || !bytes.Equal(got.Key, want.Key) || !bytes.Equal(got.Content, want.Content) || !bytes.Equal(got.MAC, want.MAC) {
		t.Errorf("%s: got %q, %v, want %q", what, got, err, want)
	}
}

// TestConditions are the writes that must not be made.
func TestConditions(t *testing.T) {
	s := fresh(t, filepath.Join(t.TempDir(), "a.db"))
	ctx := t.Context()
	for _, err := range []error{s.Record(ctx, issuance(1)), s.AddProposal(ctx, row("p")), s.SwapProposal(ctx, row("p"), Row{[]byte("p"), []byte("c"), []byte("2")})} {
		if err != nil {
			t.Fatal(err)
		}
	}
	otherHead, sameSerial := issuance(2), issuance(3)
	otherHead.Head, sameSerial.Serial = head(2), issuance(1).Serial
	rows := []struct {
		name string
		err  error
		want wire.Reason
	}{
		{"a second root", s.CreateRoot(ctx, row("root")), wire.StoreForeign},
		{"a root that was replaced", s.SwapRoot(ctx, row("old"), row("new")), wire.Behind},
		{"a step after another head", s.Append(ctx, head(2), step(3)), wire.Behind},
		{"a genesis after the genesis", s.Append(ctx, wire.Digest{}, step(2)), wire.Behind},
		{"the same step", s.Append(ctx, head(1), step(1)), wire.Behind},
		{"a nonce again", s.Record(ctx, issuance(1)), wire.NonceUsed},
		{"another head", s.Record(ctx, otherHead), wire.Behind},
		{"two certificates of one serial", s.Record(ctx, sameSerial), wire.StoreFailed},
		{"a proposal again", s.AddProposal(ctx, row("p")), wire.Behind},
		{"a proposal that was changed", s.SwapProposal(ctx, row("p"), row("p")), wire.Behind},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { wantReason(t, r.err, r.want) })
	}
	if got := count(t, s); got != 1 {
		t.Errorf("got %d rows in the log, want 1", got)
	}
	again := issuance(4)
	again.Serial, again.Certificate = issuance(1).Serial, issuance(1).Certificate
	if err := s.Record(ctx, again); err != nil {
		t.Errorf("the same certificate again: %v", err)
	}
	if err := s.RemoveProposal(ctx, Row{Key: []byte("p"), MAC: []byte("2")}); err != nil {
		t.Error(err)
	}
	if left, err := s.Proposals(ctx); err != nil || len(left) != 0 {
		t.Errorf("got %d proposals, %v, want none", len(left), err)
	}
}

// TestOpenRefusals opens what is no store of ours.
func TestOpenRefusals(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{"empty": "", "text": strings.Repeat("not a database ", 100)} {
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	edit(t, at("foreign"), `CREATE TABLE something (x)`)
	rootless, err := Create(t.Context(), "sqlite:"+at("rootless"))
	if err != nil {
		t.Fatal(err)
	}
	rootless.Close()
	fresh(t, at("newer"))
	edit(t, at("newer"), `UPDATE cohort_schema SET version = 2`)

	rows := []struct {
		name, dsn string
		open      func(context.Context, string) (*Store, error)
		want      wire.Reason
	}{
		{"missing", "sqlite:" + at("missing"), Open, wire.StoreForeign},
		{"empty", "sqlite:" + at("empty"), Open, wire.StoreForeign},
		{"text", "sqlite:" + at("text"), Open, wire.StoreForeign},
		{"foreign", "sqlite:" + at("foreign"), Open, wire.StoreForeign},
		{"without root", "sqlite:" + at("rootless"), Open, wire.StoreForeign},
		{"newer", "sqlite:" + at("newer"), Open, wire.StoreForeign},
		{"make in text", "sqlite:" + at("text"), Create, wire.StoreForeign},
		{"make in foreign", "sqlite:" + at("foreign"), Create, wire.StoreForeign},
		{"make in newer", "sqlite:" + at("newer"), Create, wire.StoreForeign},
		{"make nowhere", "sqlite:" + at("no/where"), Create, wire.StoreFailed},
		{"PostgreSQL", "postgres://user:hunter2@host/db", Open, wire.BadRequest},
		{"no kind", "file", Open, wire.BadRequest},
		{"no file", "sqlite:", Create, wire.BadRequest},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			s, err := r.open(t.Context(), r.dsn)
			wantReason(t, err, r.want)
			if s != nil {
				t.Error("got a store with an error")
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("got %q with a password in it", err)
			}
		})
	}
	if _, err := os.Stat(at("missing")); err == nil {
		t.Error("Open made a file")
	}
	if s, err := Create(t.Context(), "sqlite:"+at("empty")); err != nil {
		t.Errorf("making a store in an empty file: %v", err)
	} else {
		s.Close()
	}
}

// edit changes a database behind the store's back.
func edit(t testing.TB, file, statement string) {
	t.Helper()
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

// TestGroupCommit records 64 issuances at once; all are there after reopening.
func TestGroupCommit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.db")
	s := fresh(t, file)
	var all sync.WaitGroup
	for n := range 64 {
		all.Go(func() {
			if err := s.Record(t.Context(), issuance(n)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := count(t, reopen(t, file)); got != 64 {
		t.Errorf("got %d rows, want 64", got)
	}
}

// TestGather takes along every writer that waits, and waits for none.
func TestGather(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &Store{writes: make(chan write)}
		for range 5 {
			go func() { s.writes <- write{} }()
		}
		synctest.Wait()
		if got := len(s.gather(<-s.writes)); got != 5 {
			t.Errorf("got a batch of %d, want 5", got)
		}
	})
}

// TestDurable looks at how the writer's connection writes: a commit waits for
// the disk.
func TestDurable(t *testing.T) {
	s := fresh(t, filepath.Join(t.TempDir(), "a.db"))
	for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal"} {
		var got string
		if err := s.session.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
			t.Errorf("got %s %q, %v, want %q", pragma, got, err, want)
		}
	}
}

// TestBatch puts a good write, a refused one and another good one into one
// transaction: the refusal is its own writer's alone. A broken write takes all
// back.
func TestBatch(t *testing.T) {
	s := fresh(t, filepath.Join(t.TempDir(), "a.db"))
	ours := func(n int) apply {
		return func(ctx context.Context, c *session) error {
			_, err := c.ExecContext(ctx, `INSERT INTO proposals VALUES (?, x'', x'')`, fmt.Append(nil, n))
			return err
		}
	}
	refused := func(context.Context, *session) error { return moved("nothing") }
	broken := func(ctx context.Context, c *session) error {
		_, err := c.ExecContext(ctx, `INSERT INTO nothing VALUES (1)`)
		return err
	}
	outcomes, err := s.transact([]write{{apply: ours(1)}, {apply: refused}, {apply: ours(2)}})
	if err != nil || outcomes[0] != nil || outcomes[2] != nil {
		t.Errorf("got %v, %v, want the good writes done", outcomes, err)
	}
	wantReason(t, outcomes[1], wire.Behind)
	if _, err := s.transact([]write{{apply: ours(3)}, {apply: broken}}); err == nil {
		t.Error("got no error of a transaction with a broken write")
	}
	if _, err := s.transact([]write{{apply: ours(4)}}); err != nil {
		t.Errorf("the transaction after it: %v", err)
	}
	if rows, err := s.Proposals(t.Context()); err != nil || len(rows) != 3 {
		t.Errorf("got %d rows, %v, want 1, 2 and 4", len(rows), err)
	}
}

// TestFaults breaks the disk, expects an error and no row, heals it, and
// expects the same write to be done.
func TestFaults(t *testing.T) {
	faults := []struct {
		name        string
		break_, fix string // run on the writer's connection
	}{
		{"full", `PRAGMA max_page_count = 1`, `PRAGMA max_page_count = 1000000`},
		{"read-only", `PRAGMA query_only = 1`, `PRAGMA query_only = 0`},
	}
	for _, fault := range faults {
		t.Run(fault.name, func(t *testing.T) {
			s := fresh(t, filepath.Join(t.TempDir(), "a.db"))
			big := issuance(1)
			big.Content = make([]byte, 1<<20)
			s.pragma(t, fault.break_)
			wantReason(t, s.Record(t.Context(), big), wire.StoreFailed)
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

// pragma sets what the connection of the writer may do. It runs between
// transactions, since the writer is at rest then.
func (s *Store) pragma(t *testing.T, statement string) {
	t.Helper()
	if s.session == nil {
		return // the broken connection was given up, and its pragma with it
	}
	if _, err := s.session.ExecContext(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// TestFullDisk fills a small disk of its own, and empties it again.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Skipf("mounting a small disk: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
	file := filepath.Join(dir, "a.db")
	s := fresh(t, file)
	if err := s.Record(t.Context(), issuance(0)); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(dir, "filler")
	// It is expected to end for want of room.
	_ = os.WriteFile(filler, make([]byte, 4<<20), 0o600)
	n := 1
	var err error
	for ; err == nil && n < 10_000; n++ {
		err = s.Record(t.Context(), issuance(n))
	}
	wantReason(t, err, wire.StoreFailed)
	if got := count(t, s); got != n-1 {
		t.Errorf("got %d rows on the full disk, want the %d acknowledged", got, n-1)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if err := s.Record(t.Context(), issuance(n)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// TestReadOnlyDisk takes the right to write away and gives it back.
func TestReadOnlyDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8m"); err != nil {
		t.Skipf("mounting a small disk: %v", err)
	}
	t.Cleanup(func() { syscall.Unmount(dir, syscall.MNT_DETACH) })
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
	wantReason(t, err, wire.StoreFailed)
	remount(0)
	s := reopen(t, filepath.Join(dir, "a.db"))
	if err := s.Record(t.Context(), issuance(1)); err != nil {
		t.Error(err)
	}
}

// TestLocked lets another process hold the write lock.
func TestLocked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.db")
	s := fresh(t, file)
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	wantReason(t, s.Record(t.Context(), issuance(1)), wire.StoreFailed)
	if _, err := db.Exec("ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := s.Record(t.Context(), issuance(1)); err != nil {
		t.Error(err)
	}
}

func TestClosed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.db")
	fresh(t, file)
	s, err := Open(t.Context(), "sqlite:"+file)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	wantReason(t, s.Record(t.Context(), issuance(1)), wire.Unavailable)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := reopen(t, file).Log(ctx, Query{Limit: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// TestRefusalsAreBounded writes more refusals than are kept.
func TestRefusalsAreBounded(t *testing.T) {
	s := fresh(t, filepath.Join(t.TempDir(), "a.db"))
	if err := s.Record(t.Context(), issuance(1)); err != nil {
		t.Fatal(err)
	}
	edit(t, s.file(t), fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO log (id, kind, task, unit, serial, certificate, content, mac)
		SELECT CAST('r' || i AS BLOB), 'refused', '', '', '', x'', x'', x'' FROM n`, maxRefusals))
	for n := range 3 {
		if err := s.Refused(t.Context(), Entry{Row: row(fmt.Sprint("refusal ", n))}); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := count(t, s), maxRefusals+1; got != want {
		t.Errorf("got %d rows, want %d: the newest refusals and the issuance", got, want)
	}
}

// file is where the store's database lies.
func (s *Store) file(t testing.TB) string {
	t.Helper()
	var number int
	var name, file string
	if err := s.reader.QueryRow(`PRAGMA database_list`).Scan(&number, &name, &file); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestKill kills a process again and again while it records and says what was
// acknowledged: every acknowledged row is there.
func TestKill(t *testing.T) {
	const variable = "STORE_TEST_FILE"
	if file := os.Getenv(variable); file != "" {
		recordForEver(t, file)
	}
	file := filepath.Join(t.TempDir(), "a.db")
	fresh(t, file)
	acknowledged := map[string]bool{}
	for range 10 {
		child := exec.Command(os.Args[0], "-test.run=^TestKill$")
		child.Env = append(os.Environ(), variable+"="+file)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 4096)
		n, err := out.Read(said) // some records at least
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		var rest bytes.Buffer
		rest.Write(said[:n])
		rest.ReadFrom(out)
		child.Wait()
		lines := strings.Split(rest.String(), "\n")
		for _, line := range lines[:len(lines)-1] { // the last may be cut
			acknowledged[line] = true
		}
	}
	page, err := reopen(t, file).Log(t.Context(), Query{Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range page {
		delete(acknowledged, string(l.Key))
	}
	if len(page) == 0 || len(acknowledged) > 0 {
		t.Errorf("of %d rows, %d acknowledged ones are missing", len(page), len(acknowledged))
	}
}

// recordForEver records from many goroutines and prints each nonce once it is
// acknowledged.
func recordForEver(t *testing.T, file string) {
	s := reopen(t, file)
	for worker := range 8 {
		go func() {
			for n := 0; ; n++ {
				i := issuance(0)
				i.Key = fmt.Appendf(nil, "%d-%d-%d", os.Getpid(), worker, n)
				i.Serial = string(i.Key)
				if err := s.Record(context.Background(), i); err != nil {
					fmt.Fprintln(os.Stderr, err)
					os.Exit(3)
				}
				fmt.Printf("%s\n", i.Key)
			}
		}()
	}
	select {}
}

func BenchmarkRecord(b *testing.B) {
	for _, writers := range []int{1, 16} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			s := fresh(b, filepath.Join(b.TempDir(), "a.db"))
			var all sync.WaitGroup
			todo := make(chan int)
			for range writers {
				all.Go(func() {
					for n := range todo {
						if err := s.Record(b.Context(), issuance(n)); err != nil {
							b.Error(err)
						}
					}
				})
			}
			for n := range b.N {
				todo <- n
			}
			close(todo)
			all.Wait()
		})
	}
}
