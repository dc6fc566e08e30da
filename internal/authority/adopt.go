package authority

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// adoptTries bounds how often an adoption starts again because another
// authority of this store was faster.
const adoptTries = 3

// tick is how often the authority looks for proposals whose delay has ended and
// for what another authority of this store adopted.
const tick = time.Second

// found adopts the first policy of an authority that has none.
func (a *Authority) found(ctx context.Context, genesis *policy.Step) (policy.Approved, []api.HistoryEntry, error) {
	if genesis == nil {
		return policy.Approved{}, nil, wire.Refuse(wire.WrongGenesis, "authority: policy", "none", "a genesis policy on the first run")
	}
	approved, err := policy.Genesis(wire.Sum(genesis.Policy), *genesis)
	if err != nil {
		return policy.Approved{}, nil, err
	}
	first, err := a.snapshot(ctx, approved, nil)
	if err == nil {
		err = first.unnamed
	}
	if err != nil {
		return policy.Approved{}, nil, err
	}
	entry, err := a.keep(ctx, wire.Digest{}, approved, *genesis)
	if errors.Is(err, wire.Behind) { // another authority of this store was first
		return a.load(ctx)
	}
	return approved, []api.HistoryEntry{entry}, err
}

// adopt makes a step the policy in force: durable first, then the snapshot,
// then the sealing of the root. Whether the step's delay has passed was decided
// before. What the tick, or another authority of this store, has adopted meanwhile
// is in force, as it should be.
func (a *Authority) adopt(ctx context.Context, step policy.Step) error {
	for range adoptTries {
		snap := a.current.Load()
		if snap.doc().Digest() == wire.Sum(step.Policy) {
			return nil
		}
		next, err := snap.approved.Next(step)
		if err != nil {
			return err
		}
		fresh, err := a.snapshot(ctx, next, nil)
		if err != nil {
			return err
		}
		entry, err := a.keep(ctx, snap.approved.Head(), next, step)
		if err == nil {
			fresh.entries = append(slices.Clip(snap.entries), entry)
			return a.enter(ctx, snap, fresh)
		}
		if !errors.Is(err, wire.Behind) {
			return err
		}
		if err := a.refresh(ctx); err != nil {
			return err
		}
	}
	return wire.Refuse(wire.Behind, "adoption", "policy that keeps changing", "a free moment")
}

// enter swaps the snapshot. Whoever else swapped it meanwhile read the same
// history from the store, or a longer one.
func (a *Authority) enter(ctx context.Context, old, fresh *snapshot) error {
	if !a.current.CompareAndSwap(old, fresh) {
		return a.refresh(ctx)
	}
	doc := fresh.doc()
	a.cutRings(old.approved, fresh.approved)
	a.guard.raise(doc.Created)
	a.metrics.sequence.Set(float64(doc.Sequence))
	a.log.Info("policy in force", "sequence", doc.Sequence, "digest", doc.Digest(), "head", fresh.approved.Head())
	if fresh.unnamed != nil {
		a.log.Error("this authority issues nothing under the new policy", "cause", fresh.unnamed)
	}
	if err := a.reseal(ctx, fresh.approved); err != nil {
		return fmt.Errorf("policy is in force, but sealing the root to it: %w", err)
	}
	return nil
}

// refresh brings snapshot and store together: what another authority adopted is
// taken over, and steps that the store lost are written again.
func (a *Authority) refresh(ctx context.Context) error {
	snap := a.current.Load()
	stored, entries, err := a.load(ctx)
	if err != nil {
		return err
	}
	switch head := snap.approved.Head(); {
	case stored.Head() == head:
		return nil
	case stored.Knows(head):
		fresh, err := a.snapshot(ctx, stored, entries)
		if err != nil {
			return err
		}
		return a.enter(ctx, snap, fresh)
	case snap.approved.Knows(stored.Head()):
		return a.restore(ctx, stored, snap.entries[len(entries):])
	}
	return wire.Refuse(wire.StoreForeign, "store: head of history", stored.Head(), snap.approved.Head())
}

// restore writes the steps again that a running authority remembers and its
// store no longer has.
func (a *Authority) restore(ctx context.Context, stored policy.Approved, lost []api.HistoryEntry) error {
	for _, entry := range lost {
		from, step := stored.Head(), stepOf(entry)
		var err error
		if stored.OK() {
			stored, err = stored.Next(step)
		} else {
			stored, err = policy.Genesis(wire.Sum(step.Policy), step)
		}
		if err != nil {
			return err
		}
		if _, err := a.keep(ctx, from, stored, step); err != nil {
			return err
		}
	}
	a.log.Warn("the store had lost policy that was in force; written again", "steps", len(lost))
	return nil
}

// keepUp does the authority's own work until ctx ends.
func (a *Authority) keepUp(ctx context.Context) {
	every := time.NewTicker(tick)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
			a.keepRings(ctx)
			if err := a.catchUp(ctx); err != nil && ctx.Err() == nil {
				a.log.Warn("keeping up with the store", "error", err)
			}
		}
	}
}

// catchUp takes over what the store has, adopts proposals whose delay is over,
// and tries again what did not work before.
func (a *Authority) catchUp(ctx context.Context) error {
	snap := a.current.Load()
	head, err := a.store.Head(ctx)
	if err != nil {
		return err
	}
	if head != snap.approved.Head() {
		if err := a.refresh(ctx); err != nil {
			return err
		}
	}
	if snap.unnamed != nil {
		fresh, err := a.snapshot(ctx, snap.approved, snap.entries)
		if err != nil {
			return err
		}
		a.current.CompareAndSwap(snap, fresh)
	}
	if err := a.adoptReady(ctx); err != nil {
		return err
	}
	return a.reseal(ctx, a.current.Load().approved)
}
