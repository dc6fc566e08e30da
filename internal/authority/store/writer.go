package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"runtime"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// maxBatch bounds how many writes share a transaction, and so how long the first of them waits
// for the last.
const maxBatch = 256

// transactionFunc is one write inside a transaction. A refusal is the outcome of this write
// alone, and the write must have changed nothing. Any other error rolls back the whole
// transaction.
type transactionFunc func(context.Context, *session) error

// session is the writer's connection and its prepared statements.
type session struct {
	*sql.Conn
	prepared map[string]*sql.Stmt
}

type pendingWrite struct {
	apply transactionFunc
	done  chan error // buffered for one outcome
}

// write queues a write and waits until it is committed. If ctx ends first the outcome is
// unknown, and the caller must not acknowledge it.
func (s *Store) write(ctx context.Context, a transactionFunc) error {
	w := pendingWrite{apply: a, done: make(chan error, 1)}
	select {
	case s.writes <- w:
	case <-ctx.Done():
		return storeError("waiting to write", ctx.Err())
	case <-s.quit:
		return wire.Refuse(wire.Unavailable, "store", "a closed store", "an open store")
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return storeError("waiting for the disk", ctx.Err())
	}
}

// writeLoop runs all writes. [Store.Close] ends it and waits for it.
func (s *Store) writeLoop() {
	defer close(s.done)
	defer s.closeSession()
	for {
		select {
		case <-s.quit:
			return
		case first := <-s.writes:
			s.commit(s.gather(first))
		}
	}
}

// gather adds all writes that already wait to a batch, and does not wait for more.
func (s *Store) gather(first pendingWrite) []pendingWrite {
	// Let the callers that the last commit woke run first: they are about to write again, and
	// would otherwise wait for the whole fsync of a batch of one.
	runtime.Gosched()
	batch := []pendingWrite{first}
	for len(batch) < maxBatch {
		select {
		case w := <-s.writes:
			batch = append(batch, w)
		default:
			return batch
		}
	}
	return batch
}

// commit writes a batch in one transaction and reports its outcome to each writer.
func (s *Store) commit(batch []pendingWrite) {
	outcomes, err := s.transact(batch)
	for i, w := range batch {
		if err != nil {
			w.done <- storeError("writing", err)
		} else {
			w.done <- outcomes[i]
		}
	}
}

// transactionTimeout bounds a transaction, in case the database does not.
const transactionTimeout = 10 * time.Second

// transact runs a batch in one transaction. It uses no caller's context, because the transaction
// belongs to several callers.
func (s *Store) transact(batch []pendingWrite) ([]error, error) {
	ctx, cancel := context.WithTimeout(context.Background(), transactionTimeout)
	defer cancel()
	if s.session == nil {
		c, err := s.writer.Conn(ctx)
		if err != nil {
			return nil, err
		}
		s.session = &session{c, make(map[string]*sql.Stmt)}
	}
	var outcomes []error
	err := s.engine.begin(ctx, s.session)
	if err == nil {
		outcomes, err = applyAll(ctx, s.session, batch)
	}
	if err == nil {
		_, err = s.session.execPrepared(ctx, `COMMIT`)
	}
	if err != nil {
		s.rollBack(ctx)
		return nil, err
	}
	return outcomes, nil
}

func applyAll(ctx context.Context, c *session, batch []pendingWrite) ([]error, error) {
	outcomes := make([]error, len(batch))
	for i, w := range batch {
		var refusal *wire.Refusal
		outcomes[i] = w.apply(ctx, c)
		if err := outcomes[i]; err != nil && !errors.As(err, &refusal) {
			return nil, err
		}
	}
	return outcomes, nil
}

// rollBack rolls the transaction back. When that fails, because SQLite has already rolled back or
// the connection is broken, it closes the connection; the next transaction opens a new one.
func (s *Store) rollBack(ctx context.Context) {
	if _, err := s.session.ExecContext(ctx, "ROLLBACK"); err != nil {
		s.closeSession()
	}
}

// closeSession ends the session and closes its connection. It closes the statements first,
// because the driver uses the connection for each. No data can be lost, so it ignores the errors.
func (s *Store) closeSession() {
	if s.session == nil {
		return
	}
	for _, statement := range s.session.prepared {
		_ = statement.Close()
	}
	_ = s.session.Raw(func(any) error { return driver.ErrBadConn })
	s.session = nil
}

// prepareOnce returns a prepared statement, which it prepares on the first call.
func (c *session) prepareOnce(ctx context.Context, statement string) (*sql.Stmt, error) {
	if c.prepared[statement] == nil {
		p, err := c.PrepareContext(ctx, statement)
		if err != nil {
			return nil, err
		}
		c.prepared[statement] = p
	}
	return c.prepared[statement], nil
}

// execPrepared runs a statement, prepared once.
func (c *session) execPrepared(ctx context.Context, statement string, args ...any) (sql.Result, error) {
	p, err := c.prepareOnce(ctx, statement)
	if err != nil {
		return nil, err
	}
	return p.ExecContext(ctx, args...)
}

// queryInt returns the number that a statement selects, 0 without a row.
func (c *session) queryInt(ctx context.Context, statement string, args ...any) (n int, err error) {
	p, err := c.prepareOnce(ctx, statement)
	if err != nil {
		return 0, err
	}
	if err := p.QueryRowContext(ctx, args...).Scan(&n); !errors.Is(err, sql.ErrNoRows) {
		return n, err
	}
	return 0, nil
}

// execChanged runs a conditional statement and reports whether it changed a row.
func (c *session) execChanged(ctx context.Context, statement string, args ...any) (bool, error) {
	result, err := c.execPrepared(ctx, statement, args...)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
}
