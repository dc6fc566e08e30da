package store

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cohort-tee/cohort/internal/testworld"
	"github.com/cohort-tee/cohort/internal/wire"
)

// older opens a store as a program for an older version of the tables does.
func older(t *testing.T, dsn string, version int) *Store {
	t.Helper()
	s, err := connect(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.engine.migrations = s.engine.migrations[:version]
	return s
}

// TestVersions: this program migrates a store of version 1 while a program of version 1 uses it.
// Both keep working.
func TestVersions(t *testing.T) { onBoth(t, testVersions) }

func testVersions(t *testing.T, dsn string) {
	if strings.HasPrefix(dsn, "sqlite:") {
		if err := createFile(strings.TrimPrefix(dsn, "sqlite:")); err != nil {
			t.Fatal(err)
		}
	}
	first := older(t, dsn, 1)
	if err := errors.Join(first.prepare(t.Context()), first.CreateRoot(t.Context(), row("root")), first.Append(t.Context(), wire.Digest{}, step(1)),
		first.Record(t.Context(), issuance(1))); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Lease(t.Context(), "rings"); err == nil {
		t.Fatal("got a lease from tables of version 1")
	}
	now := reopen(t, dsn)
	if _, err := now.Lease(t.Context(), "rings"); err != nil {
		t.Errorf("after the migration: %v", err)
	}
	root, err := now.RootRow(t.Context())
	check(t, "root", err, root, row("root"))
	if err := errors.Join(first.migrateTables(t.Context()), first.Record(t.Context(), issuance(2)), now.Record(t.Context(), issuance(3)),
		older(t, dsn, 1).migrateTables(t.Context())); err != nil {
		t.Errorf("version 1 beside the next: %v", err)
	}
	testworld.Refused(t, first.Record(t.Context(), issuance(3)), wire.NonceUsed)
	if got := count(t, first); got != 3 {
		t.Errorf("got %d rows, want 3", got)
	}
}

// TestVersionsAhead: tables of the next version are used, tables of later versions are refused.
func TestVersionsAhead(t *testing.T) { onBoth(t, testVersionsAhead) }

func testVersionsAhead(t *testing.T, dsn string) {
	known := fresh(t, dsn).engine.version()
	for version, want := range map[int]wire.Reason{0: wire.StoreForeign, known + 1: "", known + 2: wire.StoreForeign} {
		edit(t, dsn, fmt.Sprint(`UPDATE cohort_schema SET version = `, version))
		s, err := Open(t.Context(), dsn)
		if want != "" {
			testworld.Refused(t, err, want)
			continue
		}
		if err != nil {
			t.Errorf("version %d: %v", version, err)
			continue
		}
		var left int
		err = s.reader.QueryRowContext(t.Context(), `SELECT version FROM cohort_schema`).Scan(&left)
		if err := errors.Join(err, s.Record(t.Context(), issuance(version)), s.Close()); err != nil || left != version {
			t.Errorf("version %d: got version %d, %v", version, left, err)
		}
	}
}

// toCome is a migration of the next version, with every kind of statement that is allowed.
const toCome = `
ALTER TABLE root ADD COLUMN later TEXT NOT NULL DEFAULT 'no';
ALTER TABLE history ADD COLUMN later TEXT NOT NULL DEFAULT 'no';
ALTER TABLE proposals ADD COLUMN later TEXT NOT NULL DEFAULT 'no';
ALTER TABLE log ADD COLUMN later TEXT NOT NULL DEFAULT 'no';
ALTER TABLE backup ADD COLUMN later TEXT NOT NULL DEFAULT 'no';
ALTER TABLE lease ADD COLUMN later TEXT NOT NULL DEFAULT 'no';
ALTER TABLE collateral ADD COLUMN later TEXT NOT NULL DEFAULT 'no';
ALTER TABLE forks ADD COLUMN later TEXT NOT NULL DEFAULT 'no';
ALTER TABLE groups ADD COLUMN later TEXT NOT NULL DEFAULT 'no';
ALTER TABLE places ADD COLUMN later TEXT NOT NULL DEFAULT 'no';
CREATE TABLE later (name TEXT PRIMARY KEY);
CREATE INDEX log_later ON log (later);
`

// TestNextVersion: a program of the next version migrates the tables. This program keeps working
// and can restart. Tables two versions ahead are refused.
func TestNextVersion(t *testing.T) { onBoth(t, testNextVersion) }

func testNextVersion(t *testing.T, dsn string) {
	now := fresh(t, dsn)
	works(t, now, 1)
	next := newer(t, dsn, toCome)
	if err := next.migrateTables(t.Context()); err != nil {
		t.Fatal(err)
	}
	works(t, now, 2)
	works(t, reopen(t, dsn), 3)
	works(t, next, 4)
	for _, table := range []string{"root", "history", "proposals", "log", "backup", "lease", "collateral", "forks", "groups", "places"} {
		var rows, later int
		if err := now.reader.QueryRowContext(t.Context(), `SELECT count(*), count(later) FILTER (WHERE later = 'no') FROM `+table).Scan(&rows, &later); err != nil || rows == 0 || later != rows {
			t.Errorf("%s: got %d rows, %d with the default, %v", table, rows, later, err)
		}
	}
	if err := newer(t, dsn, toCome, `CREATE TABLE latest (name TEXT PRIMARY KEY);`).migrateTables(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func() (*Store, error){
		"open":   func() (*Store, error) { return Open(t.Context(), dsn) },
		"create": func() (*Store, error) { return Create(t.Context(), dsn) },
	} {
		s, err := open()
		testworld.Refused(t, err, wire.StoreForeign)
		if s != nil {
			t.Errorf("%s: got a store two versions ahead", name)
		}
	}
	works(t, next, 5) // the tables are only one version ahead of next
}

// newer opens a store as a program with more migrations does.
func newer(t *testing.T, dsn string, more ...string) *Store {
	t.Helper()
	s, err := connect(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.engine.migrations = append(s.engine.migrations[:s.engine.version():s.engine.version()], more...)
	return s
}

// works writes to every table for the n-th time.
func works(t *testing.T, s *Store, n int) {
	t.Helper()
	ctx, name := t.Context(), fmt.Sprint("row ", n)
	root, err := s.RootRow(ctx)
	if err != nil {
		t.Fatal(err)
	}
	kept, err := s.Backup(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"a second root": s.CreateRoot(ctx, row("root")),
		"a known step":  s.Append(ctx, head(0), step(1)),
	} {
		if wire.ReasonOf(err) == wire.StoreFailed || err == nil {
			t.Errorf("%s: got %v, want it refused", what, err)
		}
	}
	if err := errors.Join(
		s.SwapRoot(ctx, root, row(name)), s.Append(ctx, head(n), step(n+1)), s.PutProposal(ctx, row(name), believed),
		s.SwapProposal(ctx, row(name), row(name)), s.RecordRefusal(ctx, Entry{Row: row("refusal " + name)}), s.SwapBackup(ctx, kept, row(name)),
		s.SwapLease(ctx, Row{}, row("lease "+name)), s.PutCollateral(ctx, Collateral{Row: row(name)}), s.PutFork(ctx, row("fork "+name)),
		created(s.CreateGroup(ctx, row("group "+name), believed)),
	); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	i := issuance(n)
	i.Head = head(n + 1)
	i.Place = placeOf(i.Unit, 0, time.Unix(4e9, 0))
	if err := s.Record(ctx, i); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

func created(_ Row, err error) error { return err }

// TestEarlierLog: a log table of an earlier program, whose sequence is AUTOINCREMENT, still
// works.
func TestEarlierLog(t *testing.T) {
	dsn := inFile(t)
	first := inSQLite.migrations[0]
	made, err := Create(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	made.Close()
	log := regexp.MustCompile(`(?s)CREATE TABLE log .*?STRICT;`).FindString(first)
	edit(t, dsn, "DROP TABLE log;"+strings.Replace(log, "PRIMARY KEY,", "PRIMARY KEY AUTOINCREMENT,", 1))
	for _, index := range regexp.MustCompile(`CREATE INDEX log_.*?;`).FindAllString(first, -1) {
		edit(t, dsn, index)
	}
	s := fresh(t, dsn)
	for n := range 3 {
		if err := s.Record(t.Context(), issuance(n)); err != nil {
			t.Fatal(err)
		}
	}
	var counted int
	if err := s.reader.QueryRowContext(t.Context(), `SELECT seq FROM sqlite_sequence WHERE name = 'log'`).Scan(&counted); err != nil || counted != 3 {
		t.Errorf("got %d counted, %v, want 3", counted, err)
	}
	if page, err := reopen(t, dsn).ReadLog(t.Context(), Query{Limit: 9}); err != nil || len(page) != 3 || page[0].Sequence != 3 {
		t.Errorf("got %v, %v, want 3 rows", page, err)
	}
}

// TestMigrationsOnlyAdd: migrations only add tables, indexes and columns with defaults, so that a
// process of version N works on tables of version N+1.
func TestMigrationsOnlyAdd(t *testing.T) {
	adds := regexp.MustCompile(`(?s)^CREATE (TABLE|INDEX) \w+ |^ALTER TABLE \w+ ADD COLUMN \w+ \w+ NOT NULL DEFAULT `)
	for _, e := range []engine{inSQLite, inPostgres} {
		if len(e.migrations) != inSQLite.version() {
			t.Error("the databases have different versions")
		}
		for _, migration := range e.migrations[1:] {
			for statement := range strings.SplitSeq(migration, ";") {
				if statement = strings.TrimSpace(statement); statement != "" && !adds.MatchString(statement) {
					t.Errorf("%q does more than add", statement)
				}
			}
		}
	}
}
