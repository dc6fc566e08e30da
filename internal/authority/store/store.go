// Package store keeps what an authority must not forget: its sealed root, the
// policy history, the proposals and the log of what it issued and refused.
//
// The store is not trusted and trusts nothing: rows carry a tag that only the
// authority can make and check, and the sealed root opens only inside a TEE. It
// promises two things alone. What it acknowledged is on disk; and a write that
// depends on what is there (a nonce not used before, a head that has not moved)
// is decided and written in one transaction. A write that could not be
// committed is an error with reason "store", and heals when the disk does.
//
// Writers are gathered: all that wait while one transaction commits go into the
// next one together, so that many issuances share one fsync.
//
// Use [Create] to make a store for `authority init` and [Open] for everything
// after. SQLite files serve now ("sqlite:FILE").
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
	"modernc.org/sqlite"
)

// version is the layout of the tables; a store of a newer one is refused.
const version = 1

const schema = `
CREATE TABLE cohort_schema (version INTEGER NOT NULL) STRICT;
CREATE TABLE root (only INTEGER PRIMARY KEY CHECK (only = 1), key BLOB NOT NULL, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE history (step INTEGER PRIMARY KEY, head BLOB NOT NULL UNIQUE, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE proposals (digest BLOB PRIMARY KEY, content BLOB NOT NULL, mac BLOB NOT NULL) STRICT;
CREATE TABLE log (
	sequence INTEGER PRIMARY KEY AUTOINCREMENT,
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
`

// Result codes of SQLite.
const (
	sqliteError   = 1  // such as: no such table
	sqliteCorrupt = 11 // damaged
	sqliteNotADB  = 26 // not a database
)

// readers is how many reads run beside the one writer.
const readers = 4

// Row is one row as the authority made it: its primary key, its content, and
// the authority's tag over table, key and content. The store believes none of
// the three.
type Row struct {
	Key     []byte
	Content []byte
	MAC     []byte
}

// Store is one database. It is safe for concurrent use, also by several
// processes.
type Store struct {
	reader *sql.DB
	writer *sql.DB // one connection
	writes chan write
	quit   chan struct{} // closed by Close
	done   chan struct{} // closed when run has ended

	session *session // of the goroutine of run alone; nil until it is needed
}

// Create opens the store at dsn for `authority init` and makes its tables when
// the file is missing or empty. A database of something else is refused with
// reason "store-foreign".
func Create(ctx context.Context, dsn string) (*Store, error) {
	file, err := path(dsn)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, failed("creating "+file, err)
	}
	if err := f.Close(); err != nil {
		return nil, failed("creating "+file, err)
	}
	s, err := connect(file)
	if err != nil {
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Open opens a store that [Create] made and `authority init` gave a root. An
// empty store, and one of something else, is refused with reason
// "store-foreign": nothing but init makes a root.
func Open(ctx context.Context, dsn string) (*Store, error) {
	file, err := path(dsn)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return nil, notOurs("no file " + file)
	}
	s, err := connect(file)
	if err != nil {
		return nil, err
	}
	err = s.check(ctx)
	if err == nil {
		_, err = s.Root(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close waits for writes under way and closes the database. Writes that come
// later are refused with reason "unavailable".
func (s *Store) Close() error {
	close(s.quit)
	<-s.done
	return errors.Join(s.reader.Close(), s.writer.Close())
}

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.reader.QueryRowContext(ctx, `SELECT 1 FROM cohort_schema`).Scan(&one); err != nil {
		return failed("reading", err)
	}
	return nil
}

// path takes the file out of a dsn. The dsn is not repeated in the error: one
// of PostgreSQL may hold a password.
func path(dsn string) (string, error) {
	file, ok := strings.CutPrefix(dsn, "sqlite:")
	switch {
	case strings.HasPrefix(dsn, "postgres://"):
		return "", wire.Refuse(wire.BadRequest, "store: address", "postgres://…", "sqlite:FILE; PostgreSQL is not supported yet")
	case !ok || file == "":
		return "", wire.Refuse(wire.BadRequest, "store: address", "another form", "sqlite:FILE")
	}
	return file, nil
}

// connect opens both pools. Transactions of the writer take the write lock at
// their begin, so that none fails half way for another process's.
func connect(file string) (*Store, error) {
	uri := (&url.URL{Scheme: "file", Opaque: url.PathEscape(file)}).String() +
		"?mode=rw&_pragma=busy_timeout(2000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_pragma=foreign_keys(1)"
	reader, err := sql.Open("sqlite", uri+"&_pragma=query_only(1)")
	if err != nil {
		return nil, failed("opening", err)
	}
	writer, err := sql.Open("sqlite", uri)
	if err != nil {
		return nil, failed("opening", errors.Join(err, reader.Close()))
	}
	reader.SetMaxOpenConns(readers)
	writer.SetMaxOpenConns(1)
	s := &Store{reader: reader, writer: writer, writes: make(chan write), quit: make(chan struct{}), done: make(chan struct{})}
	go s.run()
	return s, nil
}

// prepare makes the tables in an empty database and checks any other.
func (s *Store) prepare(ctx context.Context) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		var tables int
		if err := c.QueryRowContext(ctx, `SELECT count(*) FROM sqlite_schema`).Scan(&tables); err != nil {
			return foreign(err)
		}
		if tables > 0 {
			return checkVersion(c.QueryRowContext(ctx, `SELECT version FROM cohort_schema`))
		}
		_, err := c.ExecContext(ctx, schema)
		return err
	})
}

func (s *Store) check(ctx context.Context) error {
	return checkVersion(s.reader.QueryRowContext(ctx, `SELECT version FROM cohort_schema`))
}

func checkVersion(row *sql.Row) error {
	var found int
	if err := row.Scan(&found); err != nil {
		return foreign(err)
	}
	if found != version {
		return wire.Refuse(wire.StoreForeign, "store: version of the tables", found, version)
	}
	return nil
}

// foreign judges an error of the first read: other tables, or none, are not
// ours.
func foreign(err error) error {
	if code(err) == sqliteError || errors.Is(err, sql.ErrNoRows) {
		return notOurs(err)
	}
	return failed("reading the version", err)
}

func notOurs(got any) error {
	return wire.Refuse(wire.StoreForeign, "store", got, "a store made by `cohort authority init`")
}

// failed is the error of anything that is not an answer of the database.
func failed(step string, err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("store: %s: %w", step, err)
	case code(err) == sqliteNotADB, code(err) == sqliteCorrupt:
		return notOurs(err)
	}
	return wire.Refuse(wire.StoreFailed, "store: "+step, err, "")
}

// code is the result code of SQLite, 0 for other errors.
func code(err error) int {
	var answer *sqlite.Error
	if errors.As(err, &answer) {
		return answer.Code() & 0xff // without the extension
	}
	return 0
}
