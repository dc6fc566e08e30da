package store

import (
	"context"
	"database/sql"
	"errors"
)

// Lease returns the row of a lease, or the zero Row if it was never taken.
func (s *Store) Lease(ctx context.Context, name string) (Row, error) {
	r := Row{Key: []byte(name)}
	err := s.reader.QueryRowContext(ctx, `SELECT content, mac FROM lease WHERE name = $1`, r.Key).Scan(&r.Content, &r.MAC)
	if errors.Is(err, sql.ErrNoRows) {
		return Row{}, nil
	}
	if err != nil {
		return Row{}, storeError("reading the lease", err)
	}
	return r, nil
}

// SwapLease replaces a lease if it is still the row old, the zero Row for none. Otherwise it
// refuses with reason "behind".
func (s *Store) SwapLease(ctx context.Context, old, next Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		statement, args := `INSERT INTO lease (name, content, mac) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, []any{next.Key, next.Content, next.MAC}
		if old.Key != nil {
			statement, args = `UPDATE lease SET content = $2, mac = $3 WHERE name = $1 AND mac = $4`, append(args, old.MAC)
		}
		ok, err := c.execChanged(ctx, statement, args...)
		if err == nil && !ok {
			return errChanged("lease")
		}
		return err
	})
}
