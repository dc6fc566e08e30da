package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/cohort-tee/cohort/internal/wire"
)

// maxRefusals is how many refusals are kept. Older ones are deleted, so that a flood of bad
// requests cannot fill the disk.
const maxRefusals = 10_000

// Entry is one row of the log and the columns that queries find it by. The key of an issuance is
// its nonce; the key of a refusal is 16 random bytes.
type Entry struct {
	Row
	Task, Unit string
}

// Issuance is the [Entry] of an issued certificate.
type Issuance struct {
	Entry
	Serial      string      // of the unit certificate
	Certificate wire.Digest // of the unit certificate
	Head        wire.Digest // the policy head under which it was decided
	Place       Place       // the unit's place among the units of its task
}

// LoggedRow is a row of the log with its sequence number.
type LoggedRow struct {
	Row
	Sequence int64
}

// Query selects a page of the log. Zero fields select everything.
type Query struct {
	Before     int64 // only rows with a lower sequence number; 0 is unbounded
	Task, Unit string
	Kind       string // "issued" or "refused"
	Limit      int    // at most this many rows; required
}

const recordStatement = `INSERT INTO log (id, kind, task, unit, serial, certificate, content, mac)
	SELECT $1, 'issued', $2, $3, $4, $5, $6, $7
	WHERE (SELECT head FROM history ORDER BY step DESC LIMIT 1) = $8
	AND NOT EXISTS (SELECT 1 FROM log WHERE kind = 'issued' AND serial = $4 AND certificate <> $5)
	ON CONFLICT (id) DO NOTHING`

// Record writes an issuance and returns when it is on disk. In the same transaction it refuses a
// nonce that was used before ("nonce-used"), a policy head that is no longer the newest
// ("behind"), a unit that finds no place or has left ("units"), and a second certificate with a
// known serial number ("store").
func (s *Store) Record(ctx context.Context, i Issuance) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		full := i.Place.checkFree(ctx, c)
		if full != nil && wire.ReasonOf(full) != wire.NoPlace {
			return full
		}
		if full == nil {
			ok, err := c.execChanged(ctx, recordStatement,
				i.Key, i.Task, i.Unit, i.Serial, i.Certificate[:], i.Content, i.MAC, i.Head[:])
			if err != nil {
				return err
			}
			if ok {
				return i.Place.occupy(ctx, c)
			}
		}
		if err := conflictError(ctx, c, i); full == nil || wire.ReasonOf(err) != wire.StoreFailed {
			return err
		}
		return full
	})
}

// conflictError returns the error for the condition that an issuance violated.
func conflictError(ctx context.Context, c *session, i Issuance) error {
	var used, current bool
	err := c.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM log WHERE id = $1),
		coalesce((SELECT head FROM history ORDER BY step DESC LIMIT 1) = $2, false)`, i.Key, i.Head[:]).Scan(&used, &current)
	switch {
	case err != nil:
		return err
	case used:
		return wire.Refuse(wire.NonceUsed, "issuance: nonce", "a challenge that was used before", "a fresh one")
	case !current:
		return errChanged("history")
	}
	return wire.Refuse(wire.StoreFailed, "issuance: serial", i.Serial, "one certificate for each serial number")
}

// RecordRefusal writes a refusal, and deletes all but the newest 10,000.
func (s *Store) RecordRefusal(ctx context.Context, e Entry) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		_, err := c.execChanged(ctx, `INSERT INTO log (id, kind, task, unit, serial, certificate, content, mac)
			VALUES ($1, 'refused', $2, $3, '', $4, $5, $6)`, e.Key, e.Task, e.Unit, []byte{}, e.Content, e.MAC)
		if err != nil {
			return err
		}
		_, err = c.execChanged(ctx, `DELETE FROM log WHERE kind = 'refused' AND sequence <=
			(SELECT sequence FROM log WHERE kind = 'refused' ORDER BY sequence DESC LIMIT 1 OFFSET $1)`, maxRefusals)
		return err
	})
}

// ReadLog returns a page of the log, newest first.
func (s *Store) ReadLog(ctx context.Context, q Query) ([]LoggedRow, error) {
	where, args := []string{"true"}, []any{q.Limit}
	only := func(condition string, arg any) {
		args = append(args, arg)
		where = append(where, fmt.Sprint(condition, " $", len(args)))
	}
	if q.Before > 0 {
		only("sequence <", q.Before)
	}
	if q.Kind != "" {
		only("kind =", q.Kind)
	}
	if q.Task != "" {
		only("task =", q.Task)
	}
	if q.Unit != "" {
		only("unit =", q.Unit)
	}
	rows, err := s.reader.QueryContext(ctx, `SELECT sequence, id, content, mac FROM log WHERE `+
		strings.Join(where, " AND ")+` ORDER BY sequence DESC LIMIT $1`, args...)
	if err != nil {
		return nil, storeError("reading the log", err)
	}
	defer rows.Close()
	var page []LoggedRow
	for rows.Next() {
		var l LoggedRow
		if err := rows.Scan(&l.Sequence, &l.Key, &l.Content, &l.MAC); err != nil {
			return nil, storeError("reading the log", err)
		}
		page = append(page, l)
	}
	if err := rows.Err(); err != nil {
		return nil, storeError("reading the log", err)
	}
	return page, nil
}
