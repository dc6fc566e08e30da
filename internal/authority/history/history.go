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
// Files, each using those before it: statements.go, doubt.go, history.go, steps.go,
// backup.go, push.go, proposals.go, adopt.go, delay.go.
package history

import (
	"context"
	"log/slog"
	"sync/atomic"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/authority/trustedclock"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/prometheus/client_golang/prometheus"
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
