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
	"testing"
	"testing/synctest"

	"github.com/cohort-tee/cohort/internal/authority/store/testdb"
	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/testworld/bubble"
	"github.com/cohort-tee/cohort/internal/wire"
)

// onBoth runs a test on an empty database of each kind.
func onBoth(t *testing.T, test func(t *testing.T, dsn string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, inFile(t)) })
	t.Run("postgres", func(t *testing.T) { test(t, testdb.Database(t)) })
}

func inFile(t testing.TB) string { return "sqlite:" + filepath.Join(t.TempDir(), "a.db") }

// fresh makes a store with a root and one step of history.
func fresh(t testing.TB, dsn string) *Store {
	t.Helper()
	s, err := Create(t.Context(), dsn)
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

func reopen(t testing.TB, dsn string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func row(name string) Row {
	return Row{Key: []byte(name), Content: []byte("content of " + name), MAC: []byte("tag of " + name)}
}

// believed stands for the authority's check of its own MACs.
func believed(r Row) bool { return strings.HasPrefix(string(r.MAC), "tag") }

// head returns the head after the n-th step.
func head(n int) wire.Digest { return wire.Sum(fmt.Append(nil, "head ", n)) }

func step(n int) Row {
	h := head(n)
	return Row{Key: h[:], Content: fmt.Append(nil, "step ", n), MAC: []byte("tag")}
}

// issuance returns the n-th issuance, with its own nonce, unit, serial and certificate, after the
// first step.
func issuance(n int) Issuance {
	return Issuance{
		Entry:  Entry{Row: row(fmt.Sprint("nonce ", n)), Task: "scoring", Unit: fmt.Sprint("unit ", n)},
		Serial: fmt.Sprint("serial ", n), Certificate: wire.Sum(fmt.Append(nil, n)), Head: head(1),
	}
}

func count(t testing.TB, s *Store) int {
	t.Helper()
	page, err := s.ReadLog(t.Context(), Query{Limit: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return len(page)
}

func TestRoundTrip(t *testing.T) { onBoth(t, testRoundTrip) }

func testRoundTrip(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	if err := s.Record(t.Context(), issuance(1)); err != nil {
		t.Fatal(err)
	}
	if err := s.PutProposal(t.Context(), row("p"), believed); err != nil {
		t.Fatal(err)
	}
	s = reopen(t, dsn)
	root, err := s.RootRow(t.Context())
	check(t, "root", err, root, row("root"))
	steps, err := s.Steps(t.Context())
	check(t, "history", err, steps[0], step(1))
	proposals, err := s.Proposals(t.Context())
	check(t, "proposals", err, proposals[0], row("p"))
	page, err := s.ReadLog(t.Context(), Query{Limit: 9})
	check(t, "log", err, page[0].Row, issuance(1).Row)
	if got, err := s.HistoryHead(t.Context()); err != nil || got != head(1) {
		t.Errorf("got head %v, %v, want %v", got, err, head(1))
	}
}

func check(t *testing.T, what string, err error, got, want Row) {
	t.Helper()
	if err != nil || !bytes.Equal(got.Key, want.Key) || !bytes.Equal(got.Content, want.Content) || !bytes.Equal(got.MAC, want.MAC) {
		t.Errorf("%s: got %q, %v, want %q", what, got, err, want)
	}
}

// TestConditions: writes whose conditions do not hold are refused.
func TestConditions(t *testing.T) { onBoth(t, testConditions) }

func testConditions(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	ctx := t.Context()
	for _, err := range []error{s.Record(ctx, issuance(1)), s.PutProposal(ctx, row("p"), believed), s.SwapProposal(ctx, row("p"), Row{[]byte("p"), []byte("c"), []byte("2")})} {
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
		{"another root under a history", s.ReplaceRoot(ctx, row("another")), wire.StoreForeign},
		{"a root that was replaced", s.SwapRoot(ctx, row("old"), row("new")), wire.Behind},
		{"a step after another head", s.Append(ctx, head(2), step(3)), wire.Behind},
		{"a genesis after the genesis", s.Append(ctx, wire.Digest{}, step(2)), wire.Behind},
		{"the same step", s.Append(ctx, head(1), step(1)), wire.Behind},
		{"a nonce again", s.Record(ctx, issuance(1)), wire.NonceUsed},
		{"another head", s.Record(ctx, otherHead), wire.Behind},
		{"two certificates of one serial", s.Record(ctx, sameSerial), wire.StoreFailed},
		{"a proposal again", s.PutProposal(ctx, row("p"), func(Row) bool { return true }), wire.Behind},
		{"a proposal that was changed", s.SwapProposal(ctx, row("p"), row("p")), wire.Behind},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) { testworld.Refused(t, r.err, r.want) })
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

// TestOpenRefusals: databases that are not a store of this program are refused.
func TestOpenRefusals(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, content := range map[string]string{"empty": "", "text": strings.Repeat("not a database ", 100)} {
		if err := os.WriteFile(at(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	edit(t, "sqlite:"+at("foreign"), `CREATE TABLE something (x)`)
	rootless, err := Create(t.Context(), "sqlite:"+at("rootless"))
	if err != nil {
		t.Fatal(err)
	}
	rootless.Close()
	fresh(t, "sqlite:"+at("newer"))
	edit(t, "sqlite:"+at("newer"), `UPDATE cohort_schema SET version = 4`)

	inServer := foreignServers(t)
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
		{"no such port", "postgres://user:hunter2@host:port/db", Open, wire.BadRequest},
		{"nobody's server", "postgres://user:hunter2@127.0.0.1:1/db", Open, wire.StoreFailed},
		{"empty server", inServer["empty"], Open, wire.StoreForeign},
		{"foreign server", inServer["foreign"], Open, wire.StoreForeign},
		{"make in a foreign server", inServer["foreign"], Create, wire.StoreForeign},
		{"server without root", inServer["rootless"], Open, wire.StoreForeign},
		{"newer server", inServer["newer"], Open, wire.StoreForeign},
		{"no kind", "file", Open, wire.BadRequest},
		{"no file", "sqlite:", Create, wire.BadRequest},
	}
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			s, err := r.open(t.Context(), r.dsn)
			testworld.Refused(t, err, r.want)
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

// foreignServers returns PostgreSQL databases that are not a store of this program.
func foreignServers(t *testing.T) map[string]string {
	all := map[string]string{}
	for _, name := range []string{"empty", "foreign", "rootless", "newer"} {
		all[name] = testdb.Database(t)
	}
	edit(t, all["foreign"], `CREATE TABLE something (x int)`)
	rootless, err := Create(t.Context(), all["rootless"])
	if err != nil {
		t.Fatal(err)
	}
	rootless.Close()
	fresh(t, all["newer"])
	edit(t, all["newer"], `UPDATE cohort_schema SET version = 4`)
	return all
}

// edit changes a database directly, without the store.
func edit(t testing.TB, dsn, statement string) {
	t.Helper()
	file, ok := strings.CutPrefix(dsn, "sqlite:")
	if !ok {
		testdb.ExecStatement(t, dsn, statement)
		return
	}
	db, err := sql.Open("sqlite", file)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(statement); err != nil {
		t.Fatal(err)
	}
}

// TestGroupCommit records 64 issuances at once. All are there after the store is reopened.
func TestGroupCommit(t *testing.T) { onBoth(t, testGroupCommit) }

func testGroupCommit(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	var all sync.WaitGroup
	for n := range 64 {
		all.Go(func() {
			if err := s.Record(t.Context(), issuance(n)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if got := count(t, reopen(t, dsn)); got != 64 {
		t.Errorf("got %d rows, want 64", got)
	}
}

// TestGather: a batch contains every write that waits, and gather does not wait for more.
func TestGather(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &Store{writes: make(chan pendingWrite)}
		for range 5 {
			go func() { s.writes <- pendingWrite{} }()
		}
		synctest.Wait()
		if got := len(s.gather(<-s.writes)); got != 5 {
			t.Errorf("got a batch of %d, want 5", got)
		}
	})
}

// TestBatch runs two good writes and a refused one in one transaction: the refusal affects only
// its own write. A broken write rolls back the whole batch.
func TestBatch(t *testing.T) { onBoth(t, testBatch) }

func testBatch(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	ours := func(n int) transactionFunc {
		return func(ctx context.Context, c *session) error {
			_, err := c.ExecContext(ctx, `INSERT INTO proposals VALUES ($1, $1, $1)`, fmt.Append(nil, n))
			return err
		}
	}
	refused := func(context.Context, *session) error { return errChanged("nothing") }
	broken := func(ctx context.Context, c *session) error {
		_, err := c.ExecContext(ctx, `INSERT INTO nothing VALUES (1)`)
		return err
	}
	outcomes, err := s.transact([]pendingWrite{{apply: ours(1)}, {apply: refused}, {apply: ours(2)}})
	if err != nil || outcomes[0] != nil || outcomes[2] != nil {
		t.Errorf("got %v, %v, want the good writes done", outcomes, err)
	}
	testworld.Refused(t, outcomes[1], wire.Behind)
	if _, err := s.transact([]pendingWrite{{apply: ours(3)}, {apply: broken}}); err == nil {
		t.Error("got no error of a transaction with a broken write")
	}
	if _, err := s.transact([]pendingWrite{{apply: ours(4)}}); err != nil {
		t.Errorf("the transaction after it: %v", err)
	}
	if rows, err := s.Proposals(t.Context()); err != nil || len(rows) != 3 {
		t.Errorf("got %d rows, %v, want 1, 2 and 4", len(rows), err)
	}
}

func TestClosed(t *testing.T) { onBoth(t, testClosed) }

func testClosed(t *testing.T, dsn string) {
	fresh(t, dsn)
	s, err := Open(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	testworld.Refused(t, s.Record(t.Context(), issuance(1)), wire.Unavailable)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := reopen(t, dsn).ReadLog(ctx, Query{Limit: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

// TestRefusalsAreBounded writes more refusals than are kept. The oldest are deleted.
func TestRefusalsAreBounded(t *testing.T) { onBoth(t, testRefusalsAreBounded) }

func testRefusalsAreBounded(t *testing.T, dsn string) {
	s := fresh(t, dsn)
	if err := s.Record(t.Context(), issuance(1)); err != nil {
		t.Fatal(err)
	}
	blob := map[bool][2]string{true: {"CAST('r' || i AS BLOB)", "x''"}, false: {"('r' || i)::bytea", "''"}}[strings.HasPrefix(dsn, "sqlite:")]
	edit(t, dsn, fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
		INSERT INTO log (id, kind, task, unit, serial, certificate, content, mac)
		SELECT %s, 'refused', '', '', '', %[3]s, %[3]s, %[3]s FROM n`, maxRefusals, blob[0], blob[1]))
	for n := range 3 {
		if err := s.RecordRefusal(t.Context(), Entry{Row: row(fmt.Sprint("refusal ", n))}); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := count(t, s), maxRefusals+1; got != want {
		t.Errorf("got %d rows, want %d: the newest refusals and the issuance", got, want)
	}
	if newest, err := s.ReadLog(t.Context(), Query{Limit: 1}); err != nil || newest[0].Sequence != maxRefusals+4 {
		t.Errorf("got the newest in place %v, %v, want %d: no place is given twice", newest, err, maxRefusals+4)
	}
}

// TestKill kills a process again and again while it records and prints what was acknowledged.
// Every acknowledged row is in the store.
func TestKill(t *testing.T) {
	if dsn := os.Getenv(toRecord); dsn != "" {
		recordForEver(t, dsn)
	}
	onBoth(t, testKill)
}

// toRecord names the environment variable with the store that a child records in.
const toRecord = "STORE_TEST_DSN"

func testKill(t *testing.T, dsn string) {
	fresh(t, dsn)
	acknowledged := map[string]bool{}
	for range 10 {
		child := exec.Command(os.Args[0], "-test.run=^TestKill$")
		child.Env = append(os.Environ(), toRecord+"="+dsn)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		said := make([]byte, 4096)
		n, err := out.Read(said) // wait for some records
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
		for _, line := range lines[:len(lines)-1] { // the last line may be incomplete
			acknowledged[line] = true
		}
	}
	page, err := reopen(t, dsn).ReadLog(t.Context(), Query{Limit: 1 << 20})
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

// recordForEver records from many goroutines, and prints each nonce once it is acknowledged.
func recordForEver(t *testing.T, dsn string) {
	s := reopen(t, dsn)
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
			s := fresh(b, inFile(b))
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
