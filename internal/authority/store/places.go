package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Place is the place of a unit among the units of its task, from an issuance until Until, or
// until the unit leaves. The policy sets how many places a task has.
type Place struct {
	Row   // its key is the unit id, like Unit in [Entry]
	Task  string
	Now   time.Time // of the authority
	Until time.Time
	Limit int // places of the task; 0 is unbounded
	// Believed reports whether the MAC of a row of places is valid. It is called for other units'
	// rows, and only when the task looks full.
	Believed func(Row) bool
}

// placeHolder is one unit with a place.
type placeHolder struct {
	unit  string
	until time.Time
}

// maxNamed bounds the unit ids that a refusal names.
const maxNamed = 16

// checkFree refuses, with "units", a unit that has left, and a unit for which its task has no
// free place. A unit that has a place keeps it.
func (p Place) checkFree(ctx context.Context, c *session) error {
	if p.Key == nil {
		return nil // an issuance without a place
	}
	left, err := c.queryInt(ctx, `SELECT "left" FROM places WHERE unit = $1`, string(p.Key))
	if err != nil {
		return err
	}
	if left != 0 {
		return wire.Refuse(wire.NoPlace, "issuance: unit", string(p.Key)+", which has left", "a unit that was started since")
	}
	if p.Limit == 0 {
		return nil
	}
	const count = `SELECT count(*) FROM places WHERE task = $1 AND until > $2 AND "left" = 0 AND unit <> $3`
	others, err := c.queryInt(ctx, count, p.Task, p.Now.UnixMilli(), string(p.Key))
	if err != nil || others < p.Limit {
		return err
	}
	holders, err := p.others(ctx, c)
	if err != nil || len(holders) < p.Limit {
		return err
	}
	return p.fullError(holders)
}

// others returns the other units that have places of the task, ordered by when their places end.
// Damaged rows do not count.
func (p Place) others(ctx context.Context, c *session) ([]placeHolder, error) {
	rows, err := c.QueryContext(ctx, `SELECT unit, content, mac, until FROM places
		WHERE task = $1 AND until > $2 AND "left" = 0 AND unit <> $3 ORDER BY until, unit`, p.Task, p.Now.UnixMilli(), string(p.Key))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []placeHolder
	for rows.Next() {
		var unit string
		var r Row
		var until int64
		if err := rows.Scan(&unit, &r.Content, &r.MAC, &until); err != nil {
			return nil, err
		}
		if r.Key = []byte(unit); p.Believed(r) {
			all = append(all, placeHolder{unit, time.UnixMilli(until).UTC()})
		}
	}
	return all, rows.Err()
}

// fullError returns the refusal: which units have the places, and when the next place becomes
// free. If a policy lowered the limit and there are more units than places, that is when enough
// places have ended.
func (p Place) fullError(holders []placeHolder) error {
	var names []string
	for _, h := range holders[:min(len(holders), maxNamed)] {
		names = append(names, h.unit)
	}
	got := fmt.Sprintf("%d: %s", len(holders), strings.Join(names, ", "))
	if more := len(holders) - len(names); more > 0 {
		got += fmt.Sprintf(" and %d more", more)
	}
	next := holders[len(holders)-p.Limit].until
	return wire.Refuse(wire.NoPlace, "units of task "+p.Task+" that hold a place", got,
		fmt.Sprintf("fewer than %d; the next place becomes free at %s, or when a unit leaves", p.Limit, next.Format(time.RFC3339)))
}

// occupy writes the place, and deletes places of the task that ended long ago.
func (p Place) occupy(ctx context.Context, c *session) error {
	if p.Key == nil {
		return nil
	}
	_, err := c.execChanged(ctx, `INSERT INTO places (unit, task, until, "left", content, mac) VALUES ($1, $2, $3, 0, $4, $5)
		ON CONFLICT (unit) DO UPDATE SET task = excluded.task, until = excluded.until, content = excluded.content, mac = excluded.mac`,
		string(p.Key), p.Task, p.Until.UnixMilli(), p.Content, p.MAC)
	if err != nil {
		return err
	}
	_, err = c.execChanged(ctx, `DELETE FROM places WHERE task = $1 AND until < $2 AND "left" = 0`, p.Task, p.Now.Add(-wire.MaxLifetime).UnixMilli())
	return err
}

// Place returns the row of a unit's place, or the zero Row if it never had one.
func (s *Store) Place(ctx context.Context, unit string) (Row, error) {
	r := Row{Key: []byte(unit)}
	err := s.reader.QueryRowContext(ctx, `SELECT content, mac FROM places WHERE unit = $1`, unit).Scan(&r.Content, &r.MAC)
	if errors.Is(err, sql.ErrNoRows) {
		return Row{}, nil
	}
	if err != nil {
		return Row{}, storeError("reading a place", err)
	}
	return r, nil
}

// ReleasePlace releases a place permanently: it replaces the row old by next if old is unchanged.
// Otherwise it refuses with reason "behind".
func (s *Store) ReleasePlace(ctx context.Context, old, next Row) error {
	return s.write(ctx, func(ctx context.Context, c *session) error {
		ok, err := c.execChanged(ctx, `UPDATE places SET "left" = 1, content = $1, mac = $2 WHERE unit = $3 AND mac = $4`, next.Content, next.MAC, string(old.Key), old.MAC)
		if err == nil && !ok {
			return errChanged("places")
		}
		return err
	})
}

// CountUnits returns the number of units of all tasks that have a place at a time. It does not
// verify the rows, so a writer to the database can change the number.
func (s *Store) CountUnits(ctx context.Context, now time.Time) (n int, err error) {
	err = s.reader.QueryRowContext(ctx, `SELECT count(*) FROM places WHERE until > $1 AND "left" = 0`, now.UnixMilli()).Scan(&n)
	if err != nil {
		return 0, storeError("counting units", err)
	}
	return n, nil
}
