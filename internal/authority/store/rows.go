package store

import (
	"context"
	"database/sql"
	"errors"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Root is the row of the sealed root. A store without one is refused with
// reason "store-foreign".
func (s *Store) Root(ctx context.Context) (Row, error) {
	var r Row
	err := s.reader.QueryRowContext(ctx, `SELECT key, content, mac FROM root`).Scan(&r.Key, &r.Content, &r.MAC)
	if errors.Is(err, sql.ErrNoRows) {
		return Row{}, wire.Refuse(wire.StoreForeign, "store: root", "none", "a store made by `cohort authority init`")
	}
	if err != nil {
		return Row{}, failed("reading the root", err)
	}
	return r, nil
}

// CreateRoot puts the sealed root into a store that has none; a second one is
// refused with reason "store-foreign".
func (s *Store) CreateRoot(ctx context.Context, r Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.changed(ctx, `INSERT INTO root ("only", key, content, mac) VALUES (1, $1, $2, $3) ON CONFLICT DO NOTHING`, r.Key, r.Content, r.MAC)
		if err == nil && !ok {
			return wire.Refuse(wire.StoreForeign, "store: root", "a root exists", "none")
		}
		return err
	})
}

// SwapRoot replaces the sealed root if it is still the row old; otherwise it
// refuses with reason "behind".
func (s *Store) SwapRoot(ctx context.Context, old, next Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.changed(ctx, `UPDATE root SET key = $1, content = $2, mac = $3 WHERE mac = $4`, next.Key, next.Content, next.MAC, old.MAC)
		if err == nil && !ok {
			return moved("root")
		}
		return err
	})
}

// Steps are the rows of the whole history, oldest first.
func (s *Store) Steps(ctx context.Context) ([]Row, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT head, content, mac FROM history ORDER BY step LIMIT $1`, wire.MaxHistory)
	if err != nil {
		return nil, failed("reading the history", err)
	}
	return collect("reading the history", rows)
}

// Head is the key of the last step, or the zero digest in an empty history.
func (s *Store) Head(ctx context.Context) (wire.Digest, error) {
	var head []byte
	err := s.reader.QueryRowContext(ctx, `SELECT head FROM history ORDER BY step DESC LIMIT 1`).Scan(&head)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return wire.Digest{}, failed("reading the head", err)
	}
	var d wire.Digest
	copy(d[:], head)
	return d, nil
}

// Append adds a step, whose key is the head after it, if the head is still
// from (the zero digest in an empty history); otherwise it refuses with reason
// "behind".
func (s *Store) Append(ctx context.Context, from wire.Digest, step Row) error {
	const statement = `INSERT INTO history (head, content, mac) SELECT $1, $2, $3
		WHERE coalesce((SELECT head FROM history ORDER BY step DESC LIMIT 1), $4) = $5
		ON CONFLICT DO NOTHING`
	var none wire.Digest
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.changed(ctx, statement, step.Key, step.Content, step.MAC, none[:], from[:])
		if err == nil && !ok {
			return moved("history")
		}
		return err
	})
}

// Proposals are all proposals, in no order that means anything.
func (s *Store) Proposals(ctx context.Context) ([]Row, error) {
	rows, err := s.reader.QueryContext(ctx, `SELECT digest, content, mac FROM proposals`)
	if err != nil {
		return nil, failed("reading the proposals", err)
	}
	return collect("reading the proposals", rows)
}

// AddProposal adds a proposal; one with the same key is refused with reason
// "behind".
func (s *Store) AddProposal(ctx context.Context, r Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.changed(ctx, `INSERT INTO proposals (digest, content, mac) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING`, r.Key, r.Content, r.MAC)
		if err == nil && !ok {
			return moved("proposals")
		}
		return err
	})
}

// SwapProposal replaces a proposal if it is still the row old; otherwise it
// refuses with reason "behind".
func (s *Store) SwapProposal(ctx context.Context, old, next Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.changed(ctx, `UPDATE proposals SET content = $1, mac = $2 WHERE digest = $3 AND mac = $4`,
			next.Content, next.MAC, old.Key, old.MAC)
		if err == nil && !ok {
			return moved("proposals")
		}
		return err
	})
}

// RemoveProposal forgets a proposal if it is still the row old.
func (s *Store) RemoveProposal(ctx context.Context, old Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		_, err := c.changed(ctx, `DELETE FROM proposals WHERE digest = $1 AND mac = $2`, old.Key, old.MAC)
		return err
	})
}

// moved is the refusal of a write that was decided on older rows.
func moved(table string) error {
	return wire.Refuse(wire.Behind, "store: "+table, "changed meanwhile", "as it was read")
}

// collect reads and closes rows of key, content and mac.
func collect(step string, rows *sql.Rows) ([]Row, error) {
	defer rows.Close()
	var all []Row
	for rows.Next() {
		var r Row
		if err := rows.Scan(&r.Key, &r.Content, &r.MAC); err != nil {
			return nil, failed(step, err)
		}
		all = append(all, r)
	}
	if err := rows.Err(); err != nil {
		return nil, failed(step, err)
	}
	return all, nil
}
