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
// after: "sqlite:FILE" for one machine, "postgres://…" for authorities on
// several. Both do the same.
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

// engine is what one kind of database does in its own way.
type engine struct {
	name       string
	begin      transactionFunc // begins a transaction that no other writer's overlaps
	tables     string          // counts the tables that are there, and among them that of the version
	durable    []string        // settings of a server without which a commit is not on disk
	migrations []string        // the n-th makes version n of the one before; each but the first only adds
}

// version is the layout of the tables this program was written for.
func (e engine) version() int { return len(e.migrations) }

// maxReaders is how many reads run beside the one writer.
const maxReaders = 4

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
	engine engine
	users  *os.File // of SQLite: locked by all processes that use the database
	reader *sql.DB
	writer *sql.DB // one connection
	writes chan pendingWrite
	quit   chan struct{} // closed by Close
	done   chan struct{} // closed when run has ended

	session *session // of the goroutine of run alone; nil until it is needed
}

// Create opens the store at dsn for `authority init` and makes its tables when
// the database is empty, an SQLite file also where there is none. A database of
// something else is refused with reason "store-foreign".
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

// Open opens a store that [Create] made and `authority init` wrote a root to. An
// empty store, and one of something else, is refused with reason
// "store-foreign": nothing but init makes a root. Tables of an older version are
// brought to ours; those of the next are used as they are.
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

// Examine looks at a store for its operator, and changes nothing: what it
// is, or why it cannot be used, or why what it acknowledges may be lost.
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

// Close waits for writes under way and closes the database. Writes that come
// later are refused with reason "unavailable".
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

// connect opens what dsn names. The dsn is not repeated in errors: one of
// PostgreSQL may contain a password.
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

// newStore makes a store of two pools and starts its writer.
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

// migrateTables demands tables of a version that this program knows how to use, and
// migrates older ones. Migrations only add, and statements name the columns they
// use, so that a process of version N goes on while one of N+1 has migrated under
// it.
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

// version is that of the tables, one that this program can use.
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

// migrate brings tables from one version to ours.
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

// storeError returns the error of a failed database operation. A damaged database, or tables
// other than ours, is "store-foreign".
func storeError(step string, err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("store: %s: %w", step, err)
	case errors.Is(err, sql.ErrNoRows), isDamaged(err):
		return wire.Refuse(wire.StoreForeign, "store: "+step, err, "a store made by `cohort authority init`")
	}
	return wire.Refuse(wire.StoreFailed, "store: "+step, err, "")
}

// isDamaged reports whether a database reported that it is damaged, or not a database.
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
