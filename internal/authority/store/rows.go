package store

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/cohort-tee/cohort/internal/wire"
)

// RootRow returns the row of the sealed root. It refuses a store without one with reason
// "store-foreign".
func (s *Store) RootRow(ctx context.Context) (Row, error) {
	var r Row
	err := s.reader.QueryRowContext(ctx, `SELECT key, content, mac FROM root`).Scan(&r.Key, &r.Content, &r.MAC)
	if errors.Is(err, sql.ErrNoRows) {
		return Row{}, wire.Refuse(wire.StoreForeign, "store: root", "no root", "a store made by `cohort authority init`")
	}
	if err != nil {
		return Row{}, storeError("reading the root", err)
	}
	return r, nil
}

// CreateRoot adds the sealed root to a store that has none. It refuses a second root with reason
// "store-foreign".
func (s *Store) CreateRoot(ctx context.Context, r Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.execChanged(ctx, `INSERT INTO root ("only", key, content, mac) VALUES (1, $1, $2, $3) ON CONFLICT DO NOTHING`, r.Key, r.Content, r.MAC)
		if err == nil && !ok {
			return wire.Refuse(wire.StoreForeign, "store: root", "a root exists", "none")
		}
		return err
	})
}

// ReplaceRoot replaces a root under which no policy was adopted. It refuses a store without a
// root, and a store with a history, with reason "store-foreign".
func (s *Store) ReplaceRoot(ctx context.Context, r Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.execChanged(ctx, `UPDATE root SET key = $1, content = $2, mac = $3 WHERE NOT EXISTS (SELECT 1 FROM history)`, r.Key, r.Content, r.MAC)
		if err == nil && !ok {
			return wire.Refuse(wire.StoreForeign, "store: root to replace", "none, or a policy history", "a root that no policy was adopted under")
		}
		return err
	})
}

// SwapRoot replaces the sealed root if it is still the row old. Otherwise it refuses with reason
// "behind".
func (s *Store) SwapRoot(ctx context.Context, old, next Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.execChanged(ctx, `UPDATE root SET key = $1, content = $2, mac = $3 WHERE mac = $4`, next.Key, next.Content, next.MAC, old.MAC)
		if err == nil && !ok {
			return errChanged("root")
		}
		return err
	})
}

// Steps returns the rows of the whole history, oldest first.
func (s *Store) Steps(ctx context.Context) ([]Row, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT head, content, mac FROM history ORDER BY step LIMIT $1`, wire.MaxHistory)
	if err != nil {
		return nil, storeError("reading the history", err)
	}
	return scanRows("reading the history", rows)
}

// HistoryHead returns the key of the last step, or the zero digest for an empty history.
func (s *Store) HistoryHead(ctx context.Context) (wire.Digest, error) {
	var head []byte
	err := s.reader.QueryRowContext(ctx, `SELECT head FROM history ORDER BY step DESC LIMIT 1`).Scan(&head)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return wire.Digest{}, storeError("reading the head", err)
	}
	var d wire.Digest
	copy(d[:], head)
	return d, nil
}

// Append adds a step, whose key is the head after it, if the head is still from (the zero digest
// for an empty history). Otherwise it refuses with reason "behind".
func (s *Store) Append(ctx context.Context, from wire.Digest, step Row) error {
	const statement = `INSERT INTO history (head, content, mac) SELECT $1, $2, $3
		WHERE coalesce((SELECT head FROM history ORDER BY step DESC LIMIT 1), $4) = $5
		ON CONFLICT DO NOTHING`
	var none wire.Digest
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.execChanged(ctx, statement, step.Key, step.Content, step.MAC, none[:], from[:])
		if err == nil && !ok {
			return errChanged("history")
		}
		return err
	})
}

// ReplaceSteps replaces the rows of the history after the head from by next, if they are still
// old. Otherwise it refuses with reason "behind". It is for rows that are damaged or do not
// follow.
func (s *Store) ReplaceSteps(ctx context.Context, from wire.Digest, old, next []Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		var none wire.Digest
		place := int64(-1)
		if from != none {
			err := c.QueryRowContext(ctx, `SELECT step FROM history WHERE head = $1`, from[:]).Scan(&place)
			if errors.Is(err, sql.ErrNoRows) {
				return errChanged("history")
			}
			if err != nil {
				return err
			}
		}
		rows, err := c.QueryContext(ctx, `SELECT head, content, mac FROM history WHERE step > $1 ORDER BY step`, place)
		if err != nil {
			return err
		}
		found, err := scanRows("reading the history", rows)
		if err != nil {
			return err
		}
		if !slices.EqualFunc(found, old, func(x, y Row) bool { return string(x.Key) == string(y.Key) && string(x.MAC) == string(y.MAC) }) {
			return errChanged("history")
		}
		if _, err := c.execChanged(ctx, `DELETE FROM history WHERE step > $1`, place); err != nil {
			return err
		}
		for _, r := range next {
			if _, err := c.execChanged(ctx, `INSERT INTO history (head, content, mac) VALUES ($1, $2, $3)`, r.Key, r.Content, r.MAC); err != nil {
				return err
			}
		}
		return nil
	})
}

// maxForks bounds the stored contradictions; the first are kept.
const maxForks = 64

// Forks returns the rows of all contradictions in the history.
func (s *Store) Forks(ctx context.Context) ([]Row, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT key, content, mac FROM forks ORDER BY key LIMIT $1`, maxForks)
	if err != nil {
		return nil, storeError("reading the contradictions", err)
	}
	return scanRows("reading the contradictions", rows)
}

// PutFork stores a contradiction and replaces the one with the same key.
func (s *Store) PutFork(ctx context.Context, r Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		_, err := c.execChanged(ctx, `INSERT INTO forks (key, content, mac) SELECT $1, $2, $3
			WHERE (SELECT count(*) FROM forks WHERE key <> $1) < $4
			ON CONFLICT (key) DO UPDATE SET content = excluded.content, mac = excluded.mac`, r.Key, r.Content, r.MAC, maxForks)
		return err
	})
}

// Proposals returns all proposals, in no particular order.
func (s *Store) Proposals(ctx context.Context) ([]Row, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT digest, content, mac FROM proposals`)
	if err != nil {
		return nil, storeError("reading the proposals", err)
	}
	return scanRows("reading the proposals", rows)
}

// PutProposal adds a proposal. If the store has one with the same key that is believed,
// PutProposal refuses with reason "behind"; it replaces one that is not believed.
func (s *Store) PutProposal(ctx context.Context, r Row, believed func(Row) bool) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.execChanged(ctx, `INSERT INTO proposals (digest, content, mac) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, r.Key, r.Content, r.MAC)
		if err != nil || ok {
			return err
		}
		old := Row{Key: r.Key}
		if err := c.QueryRowContext(ctx, `SELECT content, mac FROM proposals WHERE digest = $1`, r.Key).Scan(&old.Content, &old.MAC); err != nil {
			return err
		}
		if believed(old) {
			return errChanged("proposals")
		}
		_, err = c.execChanged(ctx, `UPDATE proposals SET content = $1, mac = $2 WHERE digest = $3`, r.Content, r.MAC, r.Key)
		return err
	})
}

// SwapProposal replaces a proposal if it is still the row old. Otherwise it refuses with reason
// "behind".
func (s *Store) SwapProposal(ctx context.Context, old, next Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.execChanged(ctx, `UPDATE proposals SET content = $1, mac = $2 WHERE digest = $3 AND mac = $4`,
			next.Content, next.MAC, old.Key, old.MAC)
		if err == nil && !ok {
			return errChanged("proposals")
		}
		return err
	})
}

// RemoveProposal deletes a proposal if it is still the row old.
func (s *Store) RemoveProposal(ctx context.Context, old Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		_, err := c.execChanged(ctx, `DELETE FROM proposals WHERE digest = $1 AND mac = $2`, old.Key, old.MAC)
		return err
	})
}

// errChanged returns the refusal of a write whose rows have changed since they were read.
func errChanged(table string) error {
	return wire.Refuse(wire.Behind, "store: "+table, "changed meanwhile", "as it was read")
}

// scanRows reads and closes rows of key, content and mac.
func scanRows(step string, rows *sql.Rows) ([]Row, error) {
	defer rows.Close()
	var all []Row
	for rows.Next() {
		var r Row
		if err := rows.Scan(&r.Key, &r.Content, &r.MAC); err != nil {
			return nil, storeError(step, err)
		}
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		return nil, storeError(step, err)
	}
	return all, nil
}
