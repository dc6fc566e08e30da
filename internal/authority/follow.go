package authority

import (
	"context"

	"github.com/cohort-tee/cohort/internal/authority/history"
	"github.com/cohort-tee/cohort/policy"
)

// follower implements [history.Follower] for the authority.
type follower struct{ a *Authority }

// Derive implements [history.Follower].
func (f follower) Derive(ctx context.Context, approved policy.Approved) (history.Derived, error) {
	snap, err := f.a.snapshot(ctx, approved)
	if err != nil {
		return nil, err
	}
	return snap, nil
}

// Entered implements [history.Follower].
func (f follower) Entered(approved policy.Approved) { f.a.cutRings(approved) }

// Reseal implements [history.Follower].
func (f follower) Reseal(ctx context.Context, approved policy.Approved) error {
	return f.a.reseal(ctx, approved)
}

// newHistory makes the history of an authority with an unsealed root.
func (a *Authority) newHistory(m history.Metrics) *history.History {
	return history.New(history.Config{
		Store: a.store, Records: a.records, Damage: &a.damage, Clock: a.clock, Log: a.log, Root: a.root.Digest, Holder: a.holder,
		Follower: follower{a}, Metrics: m,
	})
}

// inForce returns the state derived from the policy in force.
func (a *Authority) inForce() *snapshot {
	return a.history.Current().Derived.(*snapshot)
}

// Unnamed implements [history.Derived].
func (s *snapshot) Unnamed() error { return s.unnamed }

// Passing implements [history.Derived].
func (s *snapshot) Passing() bool { return s.groups.Passing() }

// Ended implements [history.Derived].
func (s *snapshot) Ended() []string { return s.unservedGroups() }
