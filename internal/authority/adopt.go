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
func (a *Authority) found(ctx context.Context, genesis *policy.Step) (stored, error) {
	if genesis == nil {
		return stored{}, wire.Refuse(wire.WrongGenesis, "authority: policy", "none", "a genesis policy on the first run")
	}
	approved, err := policy.Genesis(wire.Sum(genesis.Policy), *genesis)
	if err != nil {
		return stored{}, err
	}
	first, err := a.snapshot(ctx, approved, nil)
	if err == nil {
		err = first.unnamed
	}
	if err != nil {
		return stored{}, err
	}
	_, err = a.keep(ctx, wire.Digest{}, approved, api.HistoryEntry{Policy: genesis.Policy, Signatures: genesis.Signatures})
	if err != nil && !errors.Is(err, wire.Behind) { // another authority of this store was first
		return stored{}, err
	}
	return a.read(ctx)
}

// adopt makes a step the policy in force: durable first, then the snapshot,
// then the sealing of the root. Whether the step's delay has passed was decided
// before. What the tick, or another authority of this store, has adopted meanwhile
// is in force, as it should be.
//
// An entry with a mark was in force before under this root. One without a mark follows only
// a history that no row contradicts: see [Authority.behind].
func (a *Authority) adopt(ctx context.Context, entry api.HistoryEntry) error {
	for range adoptTries {
		snap := a.current.Load()
		if snap.doc().Digest() == wire.Sum(entry.Policy) {
			return nil
		}
		next, err := snap.approved.Next(stepOf(entry))
		if err != nil {
			return err
		}
		if err := a.mayFollow(next.Head(), entry.Adopted); err != nil {
			return err
		}
		fresh, err := a.snapshot(ctx, next, nil)
		if err != nil {
			return err
		}
		kept, err := a.keep(ctx, snap.approved.Head(), next, api.HistoryEntry{Policy: entry.Policy, Signatures: entry.Signatures})
		if err == nil {
			fresh.entries = append(slices.Clip(snap.entries), kept)
			return a.entered(ctx, snap, fresh, entry.Adopted)
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

// entered enters a step that is durable. Where rows of the history had been left over,
// they may follow now.
func (a *Authority) entered(ctx context.Context, old, fresh *snapshot, mark []byte) error {
	if len(mark) > 0 {
		a.metrics.again.Inc()
		a.log.Warn("the store had lost a step that was in force; it was shown, and is in force again", "head", fresh.approved.Head())
	}
	if err := a.enter(ctx, old, fresh); err != nil {
		return err
	}
	if len(a.doubt.restOf()) > 0 {
		return a.refresh(ctx)
	}
	return nil
}

// enter swaps the snapshot. Whoever else swapped it meanwhile read the same
// history from the store, or a longer one.
func (a *Authority) enter(ctx context.Context, old, fresh *snapshot) error {
	if !a.swap(old, fresh) {
		return a.refresh(ctx)
	}
	doc := fresh.doc()
	a.cutRings(fresh.approved)
	a.clock.Raise(doc.Created)
	a.clock.Raise(fresh.entries[len(fresh.entries)-1].AdoptedAt)
	a.metrics.sequence.Set(float64(doc.Sequence))
	a.log.Info("policy in force", "sequence", doc.Sequence, "digest", doc.Digest(), "head", fresh.approved.Head())
	if fresh.unnamed != nil {
		a.log.Error("this authority issues nothing under the new policy", "cause", fresh.unnamed)
	}
	for _, cause := range fresh.ended() {
		a.log.Warn("a group is not served here", "cause", cause)
	}
	if a.behind() != nil {
		return nil // what is in force here may name programs that lost the root since
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
	h, err := a.read(ctx)
	if err != nil {
		return err
	}
	switch head := snap.approved.Head(); {
	case h.approved.Head() == head:
		return a.setAside(ctx, h)
	case h.approved.Knows(head):
		fresh, err := a.snapshot(ctx, h.approved, h.entries)
		if err != nil {
			return err
		}
		if err := a.enter(ctx, snap, fresh); err != nil {
			return err
		}
		return a.setAside(ctx, h)
	case snap.approved.Knows(h.approved.Head()):
		return a.restore(ctx, h.approved, snap.entries[len(h.entries):])
	}
	return a.otherHistory(ctx, snap, h)
}

// restore writes the steps again that a running authority remembers and its
// store no longer has.
func (a *Authority) restore(ctx context.Context, stored policy.Approved, lost []api.HistoryEntry) error {
	for _, entry := range lost {
		from := stored.Head()
		var err error
		if stored, err = follow(stored, stepOf(entry)); err != nil {
			return err
		}
		if _, err := a.keep(ctx, from, stored, entry); err != nil {
			return err
		}
		if len(a.doubt.restOf()) > 0 {
			if _, err := a.read(ctx); err != nil { // what is left over changed
				return err
			}
		}
	}
	if a.metrics != nil {
		a.metrics.again.Add(float64(len(lost)))
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
	if err := a.lookBack(ctx, recentRows); err != nil {
		return err
	}
	snap := a.current.Load()
	head, err := a.store.Head(ctx)
	if err != nil {
		return err
	}
	if head != snap.approved.Head() || a.behind() != nil {
		if err := a.refresh(ctx); err != nil {
			return err
		}
	}
	if snap.unnamed != nil || snap.groups.passing() {
		fresh, err := a.snapshot(ctx, snap.approved, snap.entries)
		if err != nil {
			return err
		}
		a.swap(snap, fresh)
	}
	if err := a.keepForks(ctx); err != nil {
		return err
	}
	if err := a.adoptReady(ctx); err != nil {
		return err
	}
	if a.behind() != nil {
		return nil
	}
	return a.reseal(ctx, a.current.Load().approved)
}
