package store

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/cohort-tee/cohort/internal/wire"
)

// Bounds of the stored vendors' documents. New documents of chips replace the oldest documents of
// chips. Documents that all chips need are never removed.
const (
	maxChips  = 4096
	maxShared = 256
)

// Collateral is a vendor's document as the authority sealed it, and the columns that bound how
// many are stored.
type Collateral struct {
	Row         // Key is the document's name
	OfChip bool // of one chip or model
	Kept   time.Time
}

// Collateral returns the row of the vendor's document of a name, or the zero Row.
func (s *Store) Collateral(ctx context.Context, name string) (Row, error) {
	r := Row{Key: []byte(name)}
	err := s.reader.QueryRowContext(ctx, `SELECT content, mac FROM collateral WHERE name = $1`, name).Scan(&r.Content, &r.MAC)
	if errors.Is(err, sql.ErrNoRows) {
		return Row{}, nil
	}
	if err != nil {
		return Row{}, storeError("reading collateral", err)
	}
	return r, nil
}

// PutCollateral stores a vendor's document and replaces the one of the same name. It refuses,
// with "rate", a new document that all chips need when there are too many.
func (s *Store) PutCollateral(ctx context.Context, c Collateral) error {
	const statement = `INSERT INTO collateral (name, content, mac, chip, kept) SELECT $1, $2, $3, $4, $5
		WHERE $4 = 1 OR (SELECT count(*) FROM collateral WHERE chip = 0 AND name <> $1) < $6
		ON CONFLICT (name) DO UPDATE SET content = excluded.content, mac = excluded.mac, chip = excluded.chip, kept = excluded.kept`
	chip := 0
	if c.OfChip {
		chip = 1
	}
	return s.write(ctx, func(ctx context.Context, w *session) error {
		ok, err := w.execChanged(ctx, statement, string(c.Key), c.Content, c.MAC, chip, c.Kept.Unix(), maxShared)
		if err != nil {
			return err
		}
		if !ok {
			return wire.Refuse(wire.TooMany, "store: documents that all chips of a vendor need", maxShared, "fewer")
		}
		_, err = w.execChanged(ctx, `DELETE FROM collateral WHERE name IN
			(SELECT name FROM collateral WHERE chip = 1 AND name <> $1 ORDER BY kept DESC LIMIT 1000 OFFSET $2)`, string(c.Key), maxChips-1)
		return err
	})
}
