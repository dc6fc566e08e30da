package store

import (
	"context"
	"database/sql"
	"errors"
	"time"
)

// maxCollateral is how many documents of vendors are kept; those that end first
// make room.
const maxCollateral = 4096

// Collateral is the vendor's document of a name, as it was kept, or nil. It
// carries no tag: appraisal checks it each time it is used.
func (s *Store) Collateral(ctx context.Context, name string) ([]byte, error) {
	var content []byte
	err := s.reader.QueryRowContext(ctx, `SELECT content FROM collateral WHERE name = $1`, name).Scan(&content)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return nil, failed("reading collateral", err)
	}
	return content, nil
}

// KeepCollateral keeps a vendor's document, in the place of the one before. It
// is given past its end too, until others need the room.
func (s *Store) KeepCollateral(ctx context.Context, name string, content []byte, expires time.Time) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		_, err := c.changed(ctx, `INSERT INTO collateral (name, content, expires) VALUES ($1, $2, $3)
			ON CONFLICT (name) DO UPDATE SET content = excluded.content, expires = excluded.expires`, name, content, expires.Unix())
		if err != nil {
			return err
		}
		_, err = c.changed(ctx, `DELETE FROM collateral WHERE name IN
			(SELECT name FROM collateral WHERE name <> $1 ORDER BY expires DESC LIMIT 1000 OFFSET $2)`, name, maxCollateral-1)
		return err
	})
}
