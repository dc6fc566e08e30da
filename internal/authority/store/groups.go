package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Group returns the row of a roster's sealed secret, or the zero Row if no authority has drawn
// it.
func (s *Store) Group(ctx context.Context, roster wire.Digest) (Row, error) {
	r := Row{Key: roster[:]}
	err := s.reader.QueryRowContext(ctx, `SELECT content, mac FROM groups WHERE roster = $1`, r.Key).Scan(&r.Content, &r.MAC)
	if errors.Is(err, sql.ErrNoRows) {
		return Row{}, nil
	}
	if err != nil {
		return Row{}, storeError("reading the secret of a group", err)
	}
	return r, nil
}

// CreateGroup adds the row of a roster's sealed secret. It keeps an existing row that is
// believed, and replaces one that is not. It returns the row that is then in the store, so that
// all authorities of a store use one secret.
func (s *Store) CreateGroup(ctx context.Context, r Row, believed func(Row) bool) (Row, error) {
	inPlace := r
	err := s.write(ctx, func(ctx context.Context, c *session) error {
		inPlace = r
		ok, err := c.execChanged(ctx, `INSERT INTO groups (roster, content, mac) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, r.Key, r.Content, r.MAC)
		if err != nil || ok {
			return err
		}
		old := Row{Key: r.Key}
		if err := c.QueryRowContext(ctx, `SELECT content, mac FROM groups WHERE roster = $1`, r.Key).Scan(&old.Content, &old.MAC); err != nil {
			return err
		}
		if believed(old) {
			inPlace = old
			return nil
		}
		_, err = c.execChanged(ctx, `UPDATE groups SET content = $1, mac = $2 WHERE roster = $3`, r.Content, r.MAC, r.Key)
		return err
	})
	return inPlace, err
}
