package authority

import (
	"context"

	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/collateral"
)

// documentCache caches vendors' documents in the store. It accepts only rows that it wrote: no
// vendor signs the time of fetching, which the authority puts into its reports. After a fault of
// the cache the document is fetched again.
type documentCache struct{ a *Authority }

// Load implements [collateral.Cache].
func (s documentCache) Load(ctx context.Context, name string) (d collateral.Document) {
	row, err := s.a.store.Collateral(ctx, name)
	if err == nil && len(row.Key) > 0 {
		err = s.a.records.Open(records.TableCollateral, row, &d)
	}
	if err != nil {
		s.a.log.Warn("loading collateral", "name", name, "error", err)
		return collateral.Document{}
	}
	return d
}

// Store implements [collateral.Cache].
func (s documentCache) Store(ctx context.Context, name string, d collateral.Document) {
	row, err := s.a.records.Seal(records.TableCollateral, []byte(name), d)
	if err == nil {
		err = s.a.store.PutCollateral(ctx, store.Collateral{Row: row, OfChip: d.OfChip, Kept: d.Fetched})
	}
	if err != nil {
		s.a.log.Warn("keeping collateral", "name", name, "error", err)
	}
}
