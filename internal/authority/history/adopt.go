package history

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// adoptTries bounds how often an adoption starts again because another authority of this store
// changed the history in between.
const adoptTries = 3

// adoptGenesis adopts the first policy when the store has no history.
func (h *History) adoptGenesis(ctx context.Context, genesis *policy.Step) (stored, error) {
	if genesis == nil {
		return stored{}, wire.Refuse(wire.WrongGenesis, "authority: policy", "no policy in the store", "a genesis policy on the first run")
	}
	approved, err := policy.Genesis(wire.Sum(genesis.Policy), *genesis)
	if err != nil {
		return stored{}, err
	}
	first, err := h.derive(ctx, approved, nil)
	if err == nil {
		err = first.Derived.Unnamed()
	}
	if err != nil {
		return stored{}, err
	}
	_, err = h.storeStep(ctx, wire.Digest{}, approved, api.HistoryEntry{Policy: genesis.Policy, Signatures: genesis.Signatures})
	if err != nil && !errors.Is(err, wire.Behind) { // another authority of this store was first
		return stored{}, err
	}
	return h.readSteps(ctx)
}

// Adopt makes a step the policy in force: it first makes the step durable, then replaces the
// snapshot, then seals the root. The caller has decided whether the step's delay has passed.
// Adopt returns nil when the policy is in force already, as when the tick or another authority of
// this store adopted it in between.
//
// An entry with a mark was in force before under this root. A step without a mark may only follow
// a history that no row contradicts: see [History.Behind].
func (h *History) Adopt(ctx context.Context, entry api.HistoryEntry) error {
	for range adoptTries {
		snap := h.Current()
		if snap.Approved.Document().Digest() == wire.Sum(entry.Policy) {
			return nil
		}
		next, err := snap.Approved.Next(StepOf(entry))
		if err != nil {
			return err
		}
		if err := h.mayFollow(next.PolicyHead(), entry.Adopted); err != nil {
			return err
		}
		fresh, err := h.derive(ctx, next, nil)
		if err != nil {
			return err
		}
		kept, err := h.storeStep(ctx, snap.Approved.PolicyHead(), next, api.HistoryEntry{Policy: entry.Policy, Signatures: entry.Signatures})
		if err == nil {
			fresh.Entries = append(slices.Clip(snap.Entries), kept)
			return h.installStep(ctx, snap, fresh, entry.Adopted)
		}
		if !errors.Is(err, wire.Behind) {
			return err
		}
		if err := h.Refresh(ctx); err != nil {
			return err
		}
	}
	return wire.Refuse(wire.Behind, "adoption", "policy that keeps changing", "a free moment")
}

// installStep installs a durable step. Rows of the history that were left over may follow it, so
// it reads the store again when there are any.
func (h *History) installStep(ctx context.Context, old, fresh *Snapshot, mark []byte) error {
	if len(mark) > 0 {
		h.metrics.Recovered.Inc()
		h.log.Warn("the store had lost a step that was in force; it was shown, and is in force again", "head", fresh.Approved.PolicyHead())
	}
	if err := h.install(ctx, old, fresh); err != nil {
		return err
	}
	if len(h.doubt.restOf()) > 0 {
		return h.Refresh(ctx)
	}
	return nil
}

// install replaces the snapshot. When another goroutine has replaced it in between, that
// goroutine read the same history from the store or a longer one.
func (h *History) install(ctx context.Context, old, fresh *Snapshot) error {
	if !h.swapSnapshot(old, fresh) {
		return h.Refresh(ctx)
	}
	doc := fresh.Approved.Document()
	h.follower.Entered(fresh.Approved)
	h.clock.Raise(doc.Created)
	h.clock.Raise(fresh.Entries[len(fresh.Entries)-1].AdoptedAt)
	h.metrics.Sequence.Set(float64(doc.Sequence))
	h.log.Info("policy in force", "sequence", doc.Sequence, "digest", doc.Digest(), "head", fresh.Approved.PolicyHead())
	if fresh.Derived.Unnamed() != nil {
		h.log.Error("this authority issues nothing under the new policy", "cause", fresh.Derived.Unnamed())
	}
	for _, cause := range fresh.Derived.Ended() {
		h.log.Warn("a group is not served here", "cause", cause)
	}
	if h.Behind() != nil {
		return nil // newer policy may no longer trust a program that this one names
	}
	if err := h.follower.Reseal(ctx, fresh.Approved); err != nil {
		return fmt.Errorf("policy is in force, but sealing the root to it: %w", err)
	}
	return nil
}

// Refresh makes snapshot and store agree: it installs steps that another authority adopted, and
// writes steps that the store lost.
func (h *History) Refresh(ctx context.Context) error {
	snap := h.Current()
	st, err := h.readSteps(ctx)
	if err != nil {
		return err
	}
	switch head := snap.Approved.PolicyHead(); {
	case st.approved.PolicyHead() == head:
		return h.setAside(ctx, st)
	case st.approved.Knows(head):
		fresh, err := h.derive(ctx, st.approved, st.entries)
		if err != nil {
			return err
		}
		if err := h.install(ctx, snap, fresh); err != nil {
			return err
		}
		return h.setAside(ctx, st)
	case snap.Approved.Knows(st.approved.PolicyHead()):
		return h.Rewrite(ctx, st.approved, snap.Entries[len(st.entries):])
	}
	return h.otherHistory(ctx, snap, st)
}

// Rewrite writes steps that this process has in memory and its store has lost.
func (h *History) Rewrite(ctx context.Context, stored policy.Approved, lost []api.HistoryEntry) error {
	for _, entry := range lost {
		from := stored.PolicyHead()
		var err error
		if stored, err = follow(stored, StepOf(entry)); err != nil {
			return err
		}
		if _, err := h.storeStep(ctx, from, stored, entry); err != nil {
			return err
		}
		if len(h.doubt.restOf()) > 0 {
			if _, err := h.readSteps(ctx); err != nil { // the rows left over have changed
				return err
			}
		}
	}
	if h.metrics.Recovered != nil {
		h.metrics.Recovered.Add(float64(len(lost)))
	}
	h.log.Warn("the store had lost policy that was in force; written again", "steps", len(lost))
	return nil
}

// Sync installs the steps in the store, adopts proposals whose delay has ended, and retries what
// failed before.
func (h *History) Sync(ctx context.Context) error {
	if err := h.lookBack(ctx, recentRows); err != nil {
		return err
	}
	snap := h.Current()
	head, err := h.store.HistoryHead(ctx)
	if err != nil {
		return err
	}
	if head != snap.Approved.PolicyHead() || h.Behind() != nil {
		if err := h.Refresh(ctx); err != nil {
			return err
		}
	}
	if snap.Derived.Unnamed() != nil || snap.Derived.Passing() {
		fresh, err := h.derive(ctx, snap.Approved, snap.Entries)
		if err != nil {
			return err
		}
		h.swapSnapshot(snap, fresh)
	}
	if err := h.keepForks(ctx); err != nil {
		return err
	}
	if err := h.adoptReady(ctx); err != nil {
		return err
	}
	if h.Behind() != nil {
		return nil
	}
	return h.follower.Reseal(ctx, h.Current().Approved)
}

// Begin finds the policy in force: the newest in the store, or the genesis.
func (h *History) Begin(ctx context.Context, genesis *policy.Step) error {
	if err := h.lookBack(ctx, pastRows); err != nil {
		return err
	}
	st, err := h.readSteps(ctx)
	if err != nil {
		return err
	}
	if !st.approved.Genuine() {
		st, err = h.adoptGenesis(ctx, genesis)
		if err != nil {
			return err
		}
	}
	if pin := st.approved.Genesis(); genesis != nil && wire.Sum(genesis.Policy) != pin {
		return wire.Refuse(wire.WrongGenesis, "authority: genesis policy", wire.Sum(genesis.Policy), pin)
	}
	h.raiseFloor(st)
	snap, err := h.derive(ctx, st.approved, st.entries)
	if err != nil {
		return err
	}
	h.current.Store(snap)
	h.metrics.Sequence.Set(float64(snap.Approved.Document().Sequence))
	if err := h.keepForks(ctx); err != nil {
		return err
	}
	return h.setAside(ctx, st)
}

// raiseFloor raises the clock's floor to the creation of the policy in force and to the newest
// adoption. [History.lookBack] raises it to the newest issuance. The time of a refusal does not
// raise it, because any client can cause one.
func (h *History) raiseFloor(st stored) {
	h.clock.Raise(st.approved.Document().Created)
	for _, entry := range st.entries {
		h.clock.Raise(entry.AdoptedAt)
	}
}
