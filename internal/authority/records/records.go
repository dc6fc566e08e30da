// Package records makes and reads the rows of an authority's store. A row has a MAC under the
// root over its table, key and content. A row without a valid MAC, or moved to another table or
// key, is refused. A damaged row is named in the log and skipped.
package records

import (
	"crypto/hmac"
	"encoding/json"
	"fmt"

	"github.com/cohort-tee/cohort/identity"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Records makes and reads rows under the keys of one root.
type Records struct{ keys *identity.Keys }

// New returns the records of a root.
func New(keys *identity.Keys) *Records { return &Records{keys} }

// Tables, by the names that the MACs of their rows cover.
const (
	TableRoot       = "root"
	TableHistory    = "history"
	TableProposals  = "proposals"
	TableLog        = "log"
	TableLease      = "lease"
	TableBackup     = "backup"
	TableCollateral = "collateral"
	TablePlaces     = "places"
	TableForks      = "forks"
	TableGroups     = "groups"
)

// Kinds of log entries.
const (
	KindIssued  = "issued"
	KindRefused = "refused"
)

// ComputeMAC returns the MAC of a row. Only an authority of this root can compute it, and it is
// valid only for the row's own table and key.
func (r *Records) ComputeMAC(table string, row store.Row) []byte {
	return r.keys.RowMAC(wire.LabelRow, []byte(table), row.Key, row.Content)
}

// Seal encodes v as JSON and returns it as a row with its MAC.
func (r *Records) Seal(table string, key []byte, v any) (store.Row, error) {
	content, err := json.Marshal(v)
	if err != nil {
		return store.Row{}, fmt.Errorf("encoding row of %s: %w", table, err)
	}
	row := store.Row{Key: key, Content: content}
	row.MAC = r.ComputeMAC(table, row)
	return row, nil
}

// Tagged reports whether the MAC of a row is valid.
func (r *Records) Tagged(table string, row store.Row) bool {
	return hmac.Equal(row.MAC, r.ComputeMAC(table, row))
}

// Open decodes a row into v, or refuses it with "store-foreign". The refusal names table and row.
func (r *Records) Open(table string, row store.Row, v any) error {
	if !r.Tagged(table, row) {
		return wire.Refuse(wire.StoreForeign, fmt.Sprintf("store: row %x of %s", row.Key, table), "a changed row", "as this authority wrote it")
	}
	if err := json.Unmarshal(row.Content, v); err != nil {
		return fmt.Errorf("decoding row %x of %s: %w", row.Key, table, err)
	}
	return nil
}

// AdoptionMAC returns the MAC under the root that proves that the step to head took effect.
func (r *Records) AdoptionMAC(head wire.Digest) []byte {
	return r.keys.RowMAC(wire.LabelAdopted, head[:])
}

// Believed returns a function that reports whether the MAC of a row of a table is valid.
func (r *Records) Believed(table string) func(store.Row) bool {
	return func(row store.Row) bool { return r.Tagged(table, row) }
}
