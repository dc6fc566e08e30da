package authority

import (
	"context"
	"crypto/hmac"
	"encoding/json"
	"fmt"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Tables, as they stand in the tags of their rows.
const (
	tableRoot      = "root"
	tableHistory   = "history"
	tableProposals = "proposals"
	tableLog       = "log"
	tableLease     = "lease"
	tableBackup    = "backup"
)

// tag is the MAC of a row: nobody but an authority of this root writes a row
// that is believed, and none is believed in another place than its own.
func (a *Authority) tag(table string, r store.Row) []byte {
	return a.keys.RowMAC(wire.LabelRow, []byte(table), r.Key, r.Content)
}

// seal makes a row of v.
func (a *Authority) seal(table string, key []byte, v any) (store.Row, error) {
	content, err := json.Marshal(v)
	if err != nil {
		return store.Row{}, fmt.Errorf("encoding row of %s: %w", table, err)
	}
	r := store.Row{Key: key, Content: content}
	r.MAC = a.tag(table, r)
	return r, nil
}

// open reads a row into v, or refuses it with "store-foreign", naming table and
// row.
func (a *Authority) open(table string, r store.Row, v any) error {
	if !hmac.Equal(r.MAC, a.tag(table, r)) {
		return wire.Refuse(wire.StoreForeign, fmt.Sprintf("store: row %x of %s", r.Key, table), "a changed row", "as this authority wrote it")
	}
	if err := json.Unmarshal(r.Content, v); err != nil {
		return fmt.Errorf("decoding row %x of %s: %w", r.Key, table, err)
	}
	return nil
}

// mark is the authority's own sign that the step to head took effect.
func (a *Authority) mark(head wire.Digest) []byte {
	return a.keys.RowMAC(wire.LabelAdopted, head[:])
}

// load reads and checks the history of the store: tags, and owners' signatures
// from the genesis on. An empty history gives the zero Approved.
func (a *Authority) load(ctx context.Context) (policy.Approved, []api.HistoryEntry, error) {
	rows, err := a.store.Steps(ctx)
	if err != nil || len(rows) == 0 {
		return policy.Approved{}, nil, err
	}
	entries := make([]api.HistoryEntry, len(rows))
	steps := make([]policy.Step, len(rows))
	for i, r := range rows {
		if err := a.open(tableHistory, r, &entries[i]); err != nil {
			return policy.Approved{}, nil, err
		}
		steps[i] = stepOf(entries[i])
	}
	approved, err := policy.Replay(wire.Sum(steps[0].Policy), steps)
	if err != nil {
		return policy.Approved{}, nil, fmt.Errorf("replaying the stored history: %w", err)
	}
	if head := approved.Head(); string(head[:]) != string(rows[len(rows)-1].Key) {
		return policy.Approved{}, nil, wire.Refuse(wire.StoreForeign, "store: head of history", head, "the head it was stored under")
	}
	return approved, entries, nil
}

func stepOf(e api.HistoryEntry) policy.Step {
	return policy.Step{Policy: e.Policy, Signatures: e.Signatures}
}

// keep makes the step that leads to next durable; the head must still be
// from. The entry that is returned carries the mark.
func (a *Authority) keep(ctx context.Context, from wire.Digest, next policy.Approved, step policy.Step) (api.HistoryEntry, error) {
	head := next.Head()
	entry := api.HistoryEntry{Policy: step.Policy, Signatures: step.Signatures, Adopted: a.mark(head)}
	row, err := a.seal(tableHistory, head[:], entry)
	if err != nil {
		return entry, err
	}
	return entry, a.store.Append(ctx, from, row)
}
