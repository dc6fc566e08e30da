// Package store keeps the durable data of an authority: its sealed root, the policy history, the
// proposals, and the log of what it issued and refused.
//
// The store is untrusted: rows have a MAC that only the authority can make and check, and the
// sealed root opens only inside a TEE. The store promises two things. What it acknowledged is on
// disk. A write that depends on existing rows (a nonce not used before, a head that has not
// moved) is decided and written in one transaction. A write that could not be committed returns
// an error with reason "store"; writes work again when the disk does.
//
// Writes are batched: all that wait while one transaction commits share the next one, so that
// many issuances share one fsync.
//
// Use [Create] to make a store for `authority init` and [Open] for everything after:
// "sqlite:FILE" for one machine, "postgres://…" for authorities on several machines. Both behave
// the same.
//
// Files, each using those before it: store.go, writer.go, rows.go, postgres.go,
// places.go, backup.go, collateral.go, groups.go, lease.go, log.go, sqlite.go.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// engine is the part of the store that differs between kinds of databases.
type engine struct {
	name       string
	begin      transactionFunc // begins a transaction; writing transactions do not overlap
	tables     string          // counts the tables, and how many of them are cohort_schema
	durable    []string        // settings of a server that must be on for a commit to be on disk
	migrations []string        // the n-th makes version n from the one before; all but the first only add
}

// version returns the version of the tables that this program is written for.
func (e engine) version() int { return len(e.migrations) }

// maxReaders is how many reads run concurrently with the writer.
const maxReaders = 4

// Row is one row as the authority made it: its primary key, its content, and the authority's MAC
// over table, key and content. The store verifies none of them.
type Row struct {
	Key     []byte
	Content []byte
	MAC     []byte
}

// Store is one database. It is safe for concurrent use. Several processes may use one database.
type Store struct {
	engine engine
	users  *os.File // SQLite only: locked by all processes that use the database
	reader *sql.DB
	writer *sql.DB // one connection
	writes chan pendingWrite
	quit   chan struct{} // closed by Close
	done   chan struct{} // closed when writeLoop has ended

	session *session // used by writeLoop alone; nil until it is needed
}

// Create opens the store at dsn for `authority init` and makes its tables when the database is
// empty. It creates an SQLite file that does not exist. It refuses a database with other tables
// with reason "store-foreign".
func Create(ctx context.Context, dsn string) (*Store, error) {
	if file, ok := strings.CutPrefix(dsn, "sqlite:"); ok && file != "" {
		if err := createFile(file); err != nil {
			return nil, err
		}
	}
	s, err := connect(dsn)
	if err != nil {
		return nil, err
	}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Open opens a store that [Create] made and `authority init` wrote a root to. It refuses an empty
// store, and a database with other tables, with reason "store-foreign": only init makes a root.
// It migrates tables of an older version, and uses tables of the next version as they are.
func Open(ctx context.Context, dsn string) (*Store, error) {
	s, err := connect(dsn)
	if err != nil {
		return nil, err
	}
	err = s.migrateTables(ctx)
	if err == nil {
		_, err = s.RootRow(ctx)
	}
	if err == nil && s.users != nil {
		err = s.endLeases(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Examine describes a store for its operator and changes nothing. It returns an error if the
// store cannot be used, or if its settings may lose acknowledged writes.
func Examine(ctx context.Context, dsn string) (string, error) {
	s, err := connect(dsn)
	if err != nil {
		return "", err
	}
	defer s.Close()
	found, err := s.version(ctx)
	if err != nil {
		return "", err
	}
	for _, name := range s.engine.durable {
		var value string
		if err := s.reader.QueryRowContext(ctx, "SHOW "+name).Scan(&value); err != nil {
			return "", storeError("reading settings", err)
		}
		if value != "on" {
			return "", wire.Refuse(wire.StoreFailed, "store: setting "+name+" of the server", value, "on")
		}
	}
	return fmt.Sprintf("%s, tables of version %d", s.engine.name, found), nil
}

// Close waits for writes in progress and closes the database. Later writes are refused with
// reason "unavailable".
func (s *Store) Close() error {
	close(s.quit)
	<-s.done
	err := errors.Join(s.reader.Close(), s.writer.Close())
	if s.users != nil {
		err = errors.Join(err, s.users.Close())
	}
	return err
}

// CheckConnection reports whether the database responds.
func (s *Store) CheckConnection(ctx context.Context) error {
	var one int
	if err := s.reader.QueryRowContext(ctx, `SELECT 1 FROM cohort_schema`).Scan(&one); err != nil {
		return storeError("reading", err)
	}
	return nil
}

// connect opens the database that dsn names. Errors do not repeat the dsn: a PostgreSQL dsn may
// contain a password.
func connect(dsn string) (*Store, error) {
	file, ok := strings.CutPrefix(dsn, "sqlite:")
	switch {
	case strings.HasPrefix(dsn, "postgres://"), strings.HasPrefix(dsn, "postgresql://"):
		return openServer(dsn)
	case ok && file != "":
		return openFile(file)
	}
	return nil, wire.Refuse(wire.BadRequest, "store: address", "an address of no known form", "sqlite:FILE or postgres://USER@HOST/DATABASE")
}

// newStore makes a store from two pools and starts its writer.
func newStore(e engine, reader, writer *sql.DB) *Store {
	reader.SetMaxOpenConns(maxReaders)
	reader.SetMaxIdleConns(maxReaders)
	writer.SetMaxOpenConns(1)
	s := &Store{engine: e, reader: reader, writer: writer, writes: make(chan pendingWrite), quit: make(chan struct{}), done: make(chan struct{})}
	go s.writeLoop()
	return s
}

// prepare makes the tables in an empty database, and checks existing ones.
func (s *Store) prepare(ctx context.Context) error {
	var tables, ours int
	if err := s.reader.QueryRowContext(ctx, s.engine.tables).Scan(&tables, &ours); err != nil {
		return storeError("reading the tables", err)
	}
	if tables > 0 {
		return s.migrateTables(ctx)
	}
	return s.write(ctx, func(ctx context.Context, c *session) error {
		if err := c.QueryRowContext(ctx, s.engine.tables).Scan(&tables, &ours); err != nil || tables > 0 {
			return err // another process was faster
		}
		return s.migrate(ctx, c, 0)
	})
}

// migrateTables demands tables of a version that this program can use, and migrates older ones.
// Migrations only add, and statements name the columns that they use, so a process of version N
// keeps working after a process of version N+1 has migrated the tables.
func (s *Store) migrateTables(ctx context.Context) error {
	found, err := s.version(ctx)
	if err != nil || found >= s.engine.version() {
		return err
	}
	return s.write(ctx, func(ctx context.Context, c *session) error {
		if err := c.QueryRowContext(ctx, `SELECT version FROM cohort_schema`).Scan(&found); err != nil {
			return err
		}
		return s.migrate(ctx, c, found)
	})
}

// version returns the version of the tables, and refuses versions that this program cannot use.
func (s *Store) version(ctx context.Context) (found int, err error) {
	var tables, ours int
	if err := s.reader.QueryRowContext(ctx, s.engine.tables).Scan(&tables, &ours); err != nil {
		return 0, storeError("reading the tables", err)
	}
	if ours == 0 {
		return 0, foreignStore(fmt.Sprint(tables, " tables, and no cohort_schema"))
	}
	if err := s.reader.QueryRowContext(ctx, `SELECT version FROM cohort_schema`).Scan(&found); err != nil {
		return 0, storeError("reading the version of the tables", err)
	}
	newest := s.engine.version() + 1
	if found < 1 || found > newest {
		return 0, wire.Refuse(wire.StoreForeign, "store: version of the tables", found, fmt.Sprint("1 to ", newest))
	}
	return found, nil
}

// migrate migrates tables from a version to this program's.
func (s *Store) migrate(ctx context.Context, c *session, from int) error {
	if from >= s.engine.version() {
		return nil // another process was faster
	}
	for _, statements := range s.engine.migrations[from:] {
		if _, err := c.ExecContext(ctx, statements); err != nil {
			return err
		}
	}
	_, err := c.ExecContext(ctx, `UPDATE cohort_schema SET version = $1`, s.engine.version())
	return err
}

func foreignStore(got any) error {
	return wire.Refuse(wire.StoreForeign, "store", got, "a store made by `cohort authority init`")
}

// storeError returns the error of a failed database operation. A damaged database, or one with
// other tables, is "store-foreign".
func storeError(step string, err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("store: %s: %w", step, err)
	case errors.Is(err, sql.ErrNoRows), isDamaged(err):
		return wire.Refuse(wire.StoreForeign, "store: "+step, err, "a store made by `cohort authority init`")
	}
	return wire.Refuse(wire.StoreFailed, "store: "+step, err, "")
}

// isDamaged reports whether err says that the database is damaged or not a database.
func isDamaged(err error) bool {
	switch sqliteCode(err) {
	case sqliteNotADB, sqliteCorrupt:
		return true
	}
	switch sqlState(err) {
	case "XX001", "XX002": // data, index corrupted
		return true
	}
	return false
}
