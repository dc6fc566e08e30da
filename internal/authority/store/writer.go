package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

	"github.com/cohort-tee/cohort/internal/wire"
)

// maxBatch bounds how many writes share a transaction, and so how long the
// first of them waits for the last.
const maxBatch = 256

// apply is one write inside a transaction. A refusal is its own outcome and
// must have written nothing; any other error takes the whole transaction back.
type apply func(context.Context, *sql.Conn) error

type write struct {
	apply apply
	done  chan error // holds one
}

// write hands a write to the writer and waits until it is committed. When ctx
// ends first the outcome is unknown, and the caller acknowledges nothing.
func (s *Store) write(ctx context.Context, a apply) error {
	w := write{apply: a, done: make(chan error, 1)}
	select {
	case s.writes <- w:
	case <-ctx.Done():
		return failed("waiting to write", ctx.Err())
	case <-s.quit:
		return wire.Refuse(wire.Unavailable, "store", "closed", "open")
	}
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return failed("waiting for the disk", ctx.Err())
	}
}

// run is the one writer. [Store.Close] ends it and waits for it.
func (s *Store) run() {
	defer close(s.done)
	for {
		select {
		case <-s.quit:
			return
		case first := <-s.writes:
			s.commit(s.gather(first))
		}
	}
}

// gather takes along all writers that wait already, and waits for none.
func (s *Store) gather(first write) []write {
	batch := []write{first}
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

// commit writes a batch in one transaction and tells each writer its outcome.
func (s *Store) commit(batch []write) {
	outcomes, err := s.transact(batch)
	for i, w := range batch {
		if err != nil {
			w.done <- failed("writing", err)
		} else {
			w.done <- outcomes[i]
		}
	}
}

// transact uses no caller's context: the transaction belongs to several, and
// busy_timeout bounds it.
func (s *Store) transact(batch []write) ([]error, error) {
	ctx := context.Background()
	c, err := s.writer.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return nil, err
	}
	outcomes, err := applyAll(ctx, c, batch)
	if err == nil {
		_, err = c.ExecContext(ctx, "COMMIT")
	}
	if err != nil {
		takeBack(ctx, c)
		return nil, err
	}
	return outcomes, nil
}

func applyAll(ctx context.Context, c *sql.Conn, batch []write) ([]error, error) {
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

// takeBack rolls back. When even that fails, because SQLite did so already or
// the connection is broken, the connection is given up and a new one opened.
func takeBack(ctx context.Context, c *sql.Conn) {
	if _, err := c.ExecContext(ctx, "ROLLBACK"); err != nil {
		// Raw closes the connection for this error, and only returns it.
		_ = c.Raw(func(any) error { return driver.ErrBadConn })
	}
}

// changed runs a conditional statement and reports whether its condition held.
func changed(ctx context.Context, c *sql.Conn, statement string, args ...any) (bool, error) {
	result, err := c.ExecContext(ctx, statement, args...)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n > 0, err
}
