// Package history keeps the policy history of an authority in its store, and decides which policy
// is in force. It handles adopted steps, proposals and their delays, statements of groups'
// parties, and contradictions in the history.
//
// It trusts rows that have a MAC under the root, and steps that owners or parties signed. It
// refuses steps that do not follow. The authority issues nothing while a row of the root names a
// head that the history does not know ([History.Behind]).
//
// The authority is the [Follower] of its history: it derives its own state from a policy before
// the step is durable, and both take effect together.
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

// Config is what a history runs on. All fields are required except the metrics.
type Config struct {
	Store    *store.Store
	Records  *records.Records
	Damage   *records.Damage
	Clock    *trustedclock.Clock
	Log      *slog.Logger
	Root     wire.Digest // each policy must name it
	Holder   string      // random name of this start of the authority, in rows that count delays
	Follower Follower
	Metrics  Metrics
}

// Metrics are the metrics of a history.
type Metrics struct {
	Sequence  prometheus.Gauge   // of the policy in force
	Forks     prometheus.Gauge   // contradictions
	Behind    prometheus.Gauge   // 1 while nothing is issued
	Recovered prometheus.Counter // steps that the store had lost
}

// Follower is the authority that a history belongs to.
type Follower interface {
	// Derive makes the authority's own state under an approved history. An error refuses the step
	// before it is durable.
	Derive(ctx context.Context, approved policy.Approved) (Derived, error)
	// Entered is called with each policy that has just come into force.
	Entered(approved policy.Approved)
	// Reseal seals the root to the policy in force.
	Reseal(ctx context.Context, approved policy.Approved) error
}

// Derived is the state that a [Follower] derives from an approved history.
type Derived interface {
	// Unnamed returns why this authority may issue nothing under the policy, nil when the policy
	// names it.
	Unnamed() error
	// Passing reports whether a part of the state was refused for a cause that may end without a
	// new policy.
	Passing() bool
	// Ended lists the groups that this authority does not serve, each with its cause.
	Ended() []string
}

// Snapshot is a history in force and the state derived from it. It is replaced as a whole.
type Snapshot struct {
	Approved policy.Approved
	Entries  []api.HistoryEntry // the whole history, genesis first
	Derived  Derived
	Replaced chan struct{} // closed when a newer snapshot is in force
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

// statementRates are the token buckets of the parties' keys, one for each key that has signed a
// statement of its group.
type statementRates struct {
	mu   sync.Mutex
	keys map[attest.Digest]*rate.Limiter // guarded by mu
}

// New returns a history. Call [History.Begin] before any other method.
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

// swapSnapshot puts fresh in force if old still is, and ends the polls that wait for the step
// after old.
func (h *History) swapSnapshot(old, fresh *Snapshot) bool {
	if !h.current.CompareAndSwap(old, fresh) {
		return false
	}
	close(old.Replaced)
	return true
}

// stored is the history in the store.
type stored struct {
	approved policy.Approved
	entries  []api.HistoryEntry // of approved
	// rest are the rows after entries: the first of them is damaged, or the step before it is
	// missing. None of them is in force.
	rest []store.Row
}

// readSteps reads the history in the store and checks its MACs and the owners' signatures, from
// the genesis on. It stops at the first row that does not follow, reports it as damaged, and
// returns it and all later rows in rest. An empty history returns the zero Approved.
func (h *History) readSteps(ctx context.Context) (stored, error) {
	rows, err := h.store.Steps(ctx)
	if err != nil {
		return stored{}, err
	}
	var st stored
	var damaged []error
	entries := make([]api.HistoryEntry, len(rows))
	whole := 0 // number of rows, from the first on, with valid MACs
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

// replay approves the entries of rows, as long as each follows the one before it and leads to the
// head that is the key of its row.
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
	if last := len(rows) - 1; err == nil && keyed(whole, last) { // the last head covers all earlier ones
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

// follow approves one more step. The first step pins its own digest.
func follow(approved policy.Approved, step policy.Step) (policy.Approved, error) {
	if !approved.Genuine() {
		return policy.Genesis(wire.Sum(step.Policy), step)
	}
	return approved.Next(step)
}

// LoadWhole reads and checks the history in a store, and refuses a history that is not whole.
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

// StepOf returns an entry as a policy step.
func StepOf(e api.HistoryEntry) policy.Step {
	return policy.Step{Policy: e.Policy, Signatures: e.Signatures}
}

// storeStep makes the step that leads to next durable; the head in the store must still be from.
// It returns the entry with its mark of adoption, and with the time of adoption if it had none.
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
			rows = append(rows, r) // may follow the new step
		}
	}
	return entry, h.store.ReplaceSteps(ctx, from, rest, rows)
}

// CheckAdopted demands the mark of this root on every step: a policy that was signed but never
// took effect is not part of the history.
func (h *History) CheckAdopted(entries []api.HistoryEntry, approved policy.Approved) error {
	for i, head := range approved.Heads() {
		if !hmac.Equal(entries[i].Adopted, h.records.AdoptionMAC(head)) {
			return wire.Refuse(wire.BadSignature, fmt.Sprint("history: mark of adoption of policy ", i+1), fmt.Sprintf("%x", entries[i].Adopted), "a mark made under this root")
		}
	}
	return nil
}
