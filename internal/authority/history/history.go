// Package history keeps the policy history of an authority in its store, and decides
// which policy is in force: adopted steps, proposals and how long they have waited,
// statements of groups' parties, and what contradicts the history.
//
// It trusts rows that carry a MAC under the root, and steps that owners or parties
// signed. It refuses steps that do not follow, and lets nothing be issued while a row of
// the root names a head that the history does not know ([History.Behind]).
//
// What an authority derives from a policy is made by its [Follower] before the step is
// durable, and comes into force with it.
//
// Files, each using those before it: doubt.go, proposals.go, history.go, adopt.go, backup.go, push.go,
// statements.go.
package history

import (
	"context"
	"crypto/hmac"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// Config is what a history runs on. All fields are required but the metrics.
type Config struct {
	Store    *store.Store
	Records  *records.Records
	Damage   *records.Damage
	Clock    *trustedclock.Clock
	Log      *slog.Logger
	Root     wire.Digest // that each policy names
	Holder   string      // names this start of the authority in rows that count delays
	Follower Follower
	Metrics  Metrics
}

// Metrics are the numbers that a history keeps.
type Metrics struct {
	Sequence  prometheus.Gauge   // of the policy in force
	Forks     prometheus.Gauge   // contradictions
	Behind    prometheus.Gauge   // 1 while nothing is issued
	Recovered prometheus.Counter // steps that the store had lost
}

// Follower is the authority of a history.
type Follower interface {
	// Derive makes the authority's own state under an approved history. An error refuses
	// the step before it is durable.
	Derive(ctx context.Context, approved policy.Approved) (Derived, error)
	// Entered acts on a policy that came into force just now.
	Entered(approved policy.Approved)
	// Reseal seals the root to the policy in force.
	Reseal(ctx context.Context, approved policy.Approved) error
}

// Derived is the state that a [Follower] derives from an approved history.
type Derived interface {
	// Unnamed is why this authority may issue nothing under the policy; nil when the
	// policy names it.
	Unnamed() error
	// Passing reports whether a part of the state was refused for a cause that may pass
	// without another policy.
	Passing() bool
	// Ended lists the groups that this authority does not serve, each with its cause.
	Ended() []string
}

// Snapshot is a history in force and the state derived from it. It is swapped whole.
type Snapshot struct {
	Approved policy.Approved
	Entries  []api.HistoryEntry // the whole history, genesis first
	Derived  Derived
	Replaced chan struct{} // closed when another snapshot is in force
}

// History is the policy history of one authority. It is safe for concurrent use.
type History struct {
	store    *store.Store
	records  *records.Records
	damage   *records.Damage
	clock    *trustedclock.Clock
	log      *slog.Logger
	root     wire.Digest
	holder   string
	follower Follower
	metrics  Metrics

	statements statementRates
	counts     counts
	opened     opened
	doubt      doubt
	current    atomic.Pointer[Snapshot]
}

// statementRates are the token buckets of the parties' keys. There are as many as
// keys have signed a statement of a group of theirs.
type statementRates struct {
	mu   sync.Mutex
	keys map[attest.Digest]*rate.Limiter // guarded by mu
}

// New returns a history that [History.Begin] has to read before anything else.
func New(c Config) *History {
	return &History{
		store: c.Store, records: c.Records, damage: c.Damage, clock: c.Clock, log: c.Log, root: c.Root, holder: c.Holder,
		follower: c.Follower, metrics: c.Metrics,
	}
}

// Current returns the snapshot in force, nil before [History.Begin].
func (h *History) Current() *Snapshot { return h.current.Load() }

// derive makes a snapshot of an approved history.
func (h *History) derive(ctx context.Context, approved policy.Approved, entries []api.HistoryEntry) (*Snapshot, error) {
	derived, err := h.follower.Derive(ctx, approved)
	if err != nil {
		return nil, err
	}
	return &Snapshot{Approved: approved, Entries: entries, Derived: derived, Replaced: make(chan struct{})}, nil
}

// swapSnapshot makes fresh the snapshot in force, if old still is, and ends the polls that wait for
// what follows old.
func (h *History) swapSnapshot(old, fresh *Snapshot) bool {
	if !h.current.CompareAndSwap(old, fresh) {
		return false
	}
	close(old.Replaced)
	return true
}

// stored is the history as the store has it.
type stored struct {
	approved policy.Approved
	entries  []api.HistoryEntry // of approved
	// rest are the rows behind those: the first is damaged, or the step before it
	// is missing. Nothing of them is in force.
	rest []store.Row
}

// readSteps reads and checks the history of the store, from the genesis on: tags, and
// owners' signatures. What does not follow ends it, is named, and is in the rest. An
// empty history returns the zero Approved.
func (h *History) readSteps(ctx context.Context) (stored, error) {
	rows, err := h.store.Steps(ctx)
	if err != nil {
		return stored{}, err
	}
	var st stored
	var damaged []error
	entries := make([]api.HistoryEntry, len(rows))
	whole := 0 // how many rows, from the first on, carry their tags
	for i, r := range rows {
		if err := h.records.Open(records.TableHistory, r, &entries[i]); err != nil {
			damaged = append(damaged, err)
		} else if whole == i {
			whole++
		}
	}
	if st.approved, st.entries = replay(rows[:whole], entries); len(st.entries) < len(rows) {
		st.rest = slices.Clone(rows[len(st.entries):])
	}
	if len(st.entries) < whole {
		damaged = append(damaged, wire.Refuse(wire.StoreForeign, fmt.Sprintf("store: row %x of %s", st.rest[0].Key, records.TableHistory),
			"a step that does not follow the one before it", "the whole history, in its order"))
	}
	h.damage.Report(h.log, records.TableHistory, damaged)
	h.doubt.setRest(st.rest)
	return st, nil
}

// replay approves the entries of rows as far as each follows the one before, and leads to the
// head that is its row's key.
func replay(rows []store.Row, entries []api.HistoryEntry) (approved policy.Approved, followed []api.HistoryEntry) {
	if len(rows) == 0 {
		return approved, nil
	}
	steps := make([]policy.Step, len(rows))
	for i := range rows {
		steps[i] = StepOf(entries[i])
	}
	keyed := func(approved policy.Approved, i int) bool {
		head := approved.Heads()[i]
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
	if !approved.Genuine() {
		return policy.Genesis(wire.Sum(step.Policy), step)
	}
	return approved.Next(step)
}

// LoadWhole reads and checks the history of a store that has to be whole.
func (h *History) LoadWhole(ctx context.Context) (policy.Approved, []api.HistoryEntry, error) {
	st, err := h.readSteps(ctx)
	if err != nil {
		return policy.Approved{}, nil, err
	}
	if len(st.rest) > 0 {
		return policy.Approved{}, nil, wire.Refuse(wire.StoreForeign, "store: rows of history", h.damage.RowsOf(records.TableHistory), "as this authority wrote them")
	}
	return st.approved, st.entries, nil
}

// StepOf returns an entry as a step to approve.
func StepOf(e api.HistoryEntry) policy.Step {
	return policy.Step{Policy: e.Policy, Signatures: e.Signatures}
}

// storeStep makes the step that leads to next durable; the head must still be
// from. The entry that is returned carries the mark, and the time of its adoption
// unless it had one.
func (h *History) storeStep(ctx context.Context, from wire.Digest, next policy.Approved, entry api.HistoryEntry) (api.HistoryEntry, error) {
	head := next.PolicyHead()
	entry.Adopted = h.records.AdoptionMAC(head)
	if entry.AdoptedAt.IsZero() {
		now, err := h.clock.Now()
		if err != nil {
			return entry, err
		}
		entry.AdoptedAt = now.UTC()
	}
	row, err := h.records.Seal(records.TableHistory, head[:], entry)
	if err != nil {
		return entry, err
	}
	rest := h.doubt.restOf()
	if len(rest) == 0 {
		return entry, h.store.Append(ctx, from, row)
	}
	rows := []store.Row{row}
	for _, r := range rest {
		if h.records.Tagged(records.TableHistory, r) && string(r.Key) != string(row.Key) {
			rows = append(rows, r) // may follow now
		}
	}
	return entry, h.store.ReplaceSteps(ctx, from, rest, rows)
}

// CheckAdopted demands the mark of this root on every step: a policy that was signed
// and has not taken effect is no history.
func (h *History) CheckAdopted(entries []api.HistoryEntry, approved policy.Approved) error {
	for i, head := range approved.Heads() {
		if !hmac.Equal(entries[i].Adopted, h.records.AdoptionMAC(head)) {
			return wire.Refuse(wire.BadSignature, fmt.Sprint("history: mark of adoption of policy ", i+1), fmt.Sprintf("%x", entries[i].Adopted), "a mark made under this root")
		}
	}
	return nil
}
