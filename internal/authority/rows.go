package authority

import (
	"context"
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// stored is the history as the store has it.
type stored struct {
	approved policy.Approved
	entries  []api.HistoryEntry // of approved
	// rest are the rows behind those: the first is damaged, or the step before it
	// is missing. Nothing of them is in force.
	rest []store.Row
}

// read reads and checks the history of the store, from the genesis on: tags, and
// owners' signatures. What does not follow ends it, is named, and stands in the rest. An
// empty history gives the zero Approved.
func (a *Authority) read(ctx context.Context) (stored, error) {
	rows, err := a.store.Steps(ctx)
	if err != nil {
		return stored{}, err
	}
	var h stored
	var damaged []error
	entries := make([]api.HistoryEntry, len(rows))
	whole := 0 // how many rows, from the first on, carry their tags
	for i, r := range rows {
		if err := a.records.Open(records.TableHistory, r, &entries[i]); err != nil {
			damaged = append(damaged, err)
		} else if whole == i {
			whole++
		}
	}
	if h.approved, h.entries = replay(rows[:whole], entries); len(h.entries) < len(rows) {
		h.rest = slices.Clone(rows[len(h.entries):])
	}
	if len(h.entries) < whole {
		damaged = append(damaged, wire.Refuse(wire.StoreForeign, fmt.Sprintf("store: row %x of %s", h.rest[0].Key, records.TableHistory),
			"a step that does not follow the one before it", "the whole history, in its order"))
	}
	a.damage.Note(a.log, records.TableHistory, damaged)
	a.doubt.setRest(h.rest)
	return h, nil
}

// replay approves the entries of rows as far as each follows the one before, and leads to the
// head that is its row's key.
func replay(rows []store.Row, entries []api.HistoryEntry) (approved policy.Approved, followed []api.HistoryEntry) {
	if len(rows) == 0 {
		return approved, nil
	}
	steps := make([]policy.Step, len(rows))
	for i := range rows {
		steps[i] = stepOf(entries[i])
	}
	keyed := func(a policy.Approved, i int) bool {
		head := a.Heads()[i]
		return string(head[:]) == string(rows[i].Key)
	}
	whole, err := policy.Replay(wire.Sum(steps[0].Policy), steps)
	if last := len(rows) - 1; err == nil && keyed(whole, last) { // and so is each before it
		return whole, entries[:len(rows):len(rows)]
	}
	for i, step := range steps {
		next, err := follow(approved, step)
		if err != nil || !keyed(next, i) {
			return approved, entries[:i:i]
		}
		approved = next
	}
	return approved, entries[:len(rows):len(rows)]
}

// follow approves one more step; the first pins itself.
func follow(approved policy.Approved, step policy.Step) (policy.Approved, error) {
	if !approved.OK() {
		return policy.Genesis(wire.Sum(step.Policy), step)
	}
	return approved.Next(step)
}

// load is read for a store that has to be whole.
func (a *Authority) load(ctx context.Context) (policy.Approved, []api.HistoryEntry, error) {
	h, err := a.read(ctx)
	if err != nil {
		return policy.Approved{}, nil, err
	}
	if len(h.rest) > 0 {
		return policy.Approved{}, nil, wire.Refuse(wire.StoreForeign, "store: rows of history", a.damage.Of(records.TableHistory), "as this authority wrote them")
	}
	return h.approved, h.entries, nil
}

func stepOf(e api.HistoryEntry) policy.Step {
	return policy.Step{Policy: e.Policy, Signatures: e.Signatures}
}

// keep makes the step that leads to next durable; the head must still be
// from. The entry that is returned carries the mark, and the time of its adoption
// unless it had one.
func (a *Authority) keep(ctx context.Context, from wire.Digest, next policy.Approved, entry api.HistoryEntry) (api.HistoryEntry, error) {
	head := next.Head()
	entry.Adopted = a.records.AdoptionMAC(head)
	if entry.AdoptedAt.IsZero() {
		now, err := a.clock.Now()
		if err != nil {
			return entry, err
		}
		entry.AdoptedAt = now.UTC()
	}
	row, err := a.records.Seal(records.TableHistory, head[:], entry)
	if err != nil {
		return entry, err
	}
	rest := a.doubt.restOf()
	if len(rest) == 0 {
		return entry, a.store.Append(ctx, from, row)
	}
	rows := []store.Row{row}
	for _, r := range rest {
		if a.records.Tagged(records.TableHistory, r) && string(r.Key) != string(row.Key) {
			rows = append(rows, r) // may follow now
		}
	}
	return entry, a.store.ReplaceSteps(ctx, from, rest, rows)
}
