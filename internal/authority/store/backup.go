package store

import (
	"context"
	"database/sql"
	"errors"
)

// Backup returns the record of the newest backup, or the zero Row if none was made.
func (s *Store) Backup(ctx context.Context) (Row, error) {
	var r Row
	err := s.reader.QueryRowContext(ctx, `SELECT key, content, mac FROM backup`).Scan(&r.Key, &r.Content, &r.MAC)
	if errors.Is(err, sql.ErrNoRows) {
		return Row{}, nil
	}
	if err != nil {
		return Row{}, storeError("reading the backup record", err)
	}
	return r, nil
}

// SwapBackup replaces the record if it is still the row old, the zero Row for no record.
// Otherwise it refuses with reason "behind".
func (s *Store) SwapBackup(ctx context.Context, old, next Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.execChanged(ctx, `INSERT INTO backup ("only", key, content, mac) VALUES (1, $1, $2, $3) ON CONFLICT ("only") DO UPDATE SET key = $1, content = $2, mac = $3 WHERE backup.mac = $4`,
			next.Key, next.Content, next.MAC, old.MAC)
		if err == nil && !ok {
			return errChanged("backup")
		}
		return err
	})
}
