package store

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"syscall"

	"modernc.org/sqlite"
)

// inSQLite is a database file. Transactions of the writer take the write lock when they begin, so
// that none fails half way because another process has it.
//
// A new row of the log gets the greatest sequence number plus one, and that greatest row is never
// deleted: [Store.RecordRefusal] keeps the newest. Stores of earlier programs have AUTOINCREMENT
// there, which counts the same and costs each commit one page more. They stay that way:
// rebuilding the log would stop all writers for a time that grows with the log.
var inSQLite = engine{
	name: "SQLite",
	begin: func(ctx context.Context, c *session) error {
		_, err := c.execPrepared(ctx, `BEGIN IMMEDIATE`)
		return err
	},
	tables: `SELECT count(*), count(*) FILTER (WHERE name = 'cohort_schema') FROM sqlite_schema`,
	migrations: []string{`
CREATE TABLE cohort_schema (version INTEGER NOT NULL) STRICT;
CREATE TABLE root (only INTEGER PRIMARY KEY CHECK (only = 1), key BLOB NOT NULL, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE history (step INTEGER PRIMARY KEY, head BLOB NOT NULL UNIQUE, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE proposals (digest BLOB PRIMARY KEY, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE log (
	sequence INTEGER PRIMARY KEY,
	id BLOB NOT NULL UNIQUE,
	kind TEXT NOT NULL CHECK (kind IN ('issued', 'refused')),
	task TEXT NOT NULL,
	unit TEXT NOT NULL,
	serial TEXT NOT NULL,
	certificate BLOB NOT NULL,
	content BLOB NOT NULL,
	mac BLOB NOT NULL
) STRICT;
CREATE INDEX log_serial ON log (serial) WHERE kind = 'issued';
CREATE INDEX log_task ON log (task, sequence);
CREATE INDEX log_unit ON log (unit, sequence);
CREATE INDEX log_refused ON log (sequence) WHERE kind = 'refused';
INSERT INTO cohort_schema VALUES (1);
`, `
CREATE TABLE backup (only INTEGER PRIMARY KEY CHECK (only = 1), key BLOB NOT NULL, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE lease (name BLOB PRIMARY KEY, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE collateral (name TEXT PRIMARY KEY, content BLOB NOT NULL, mac BLOB NOT NULL, chip INTEGER NOT NULL, kept INTEGER NOT NULL) STRICT;
CREATE INDEX collateral_kept ON collateral (chip, kept);
CREATE TABLE forks (key BLOB PRIMARY KEY, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE groups (roster BLOB PRIMARY KEY, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE places (unit TEXT PRIMARY KEY, task TEXT NOT NULL, until INTEGER NOT NULL, "left" INTEGER NOT NULL, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE INDEX places_task ON places (task, until, unit) WHERE "left" = 0;
`},
}

// Result codes of SQLite.
const (
	sqliteCorrupt = 11 // damaged
	sqliteNotADB  = 26 // not a database file
)

// createFile creates an empty database file unless the file exists.
func createFile(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return storeError("creating "+file, err)
	}
	return nil
}

func openFile(file string) (*Store, error) {
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil, foreignStore("no file " + file)
	}
	users, err := os.OpenFile(file+"-users", os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = flock(users, syscall.LOCK_SH)
	}
	if err != nil {
		return nil, storeError("opening "+file+"-users", err)
	}
	uri := (&url.URL{Scheme: "file", Opaque: url.PathEscape(file)}).String() +
		"?mode=rw&_pragma=busy_timeout(2000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)"
	reader, err := sql.Open("sqlite", uri+"&_pragma=query_only(1)")
	if err != nil {
		return nil, storeError("opening", errors.Join(err, users.Close()))
	}
	writer, err := sql.Open("sqlite", uri)
	if err != nil {
		return nil, storeError("opening", errors.Join(err, reader.Close(), users.Close()))
	}
	s := newStore(inSQLite, reader, writer)
	s.users = users
	return s, nil
}

// flock locks a whole file until it is closed or the process ends.
func flock(f *os.File, how int) error {
	for {
		if err := syscall.Flock(int(f.Fd()), how); err != syscall.EINTR {
			return err
		}
	}
}

// endLeases deletes the leases when no other process uses the database: then their holder has
// ended without releasing them, and waiting for the term is pointless. If the disk accepts no
// writes, the leases end by their term.
func (s *Store) endLeases(ctx context.Context) error {
	if flock(s.users, syscall.LOCK_EX|syscall.LOCK_NB) == nil {
		_ = s.write(ctx, func(ctx context.Context, c *session) error {
			_, err := c.ExecContext(ctx, `DELETE FROM lease`)
			return err
		})
	}
	// Converting the lock may have dropped the first one, so take it again either way.
	if err := flock(s.users, syscall.LOCK_SH); err != nil {
		return storeError("locking", err)
	}
	return nil
}

// sqliteCode returns the result code of a SQLite error, 0 for other errors.
func sqliteCode(err error) int {
	var response *sqlite.Error
	if errors.As(err, &response) {
		return response.Code() & 0xff // without the extension
	}
	return 0
}
