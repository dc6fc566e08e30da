package authority

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"time"

	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Times of the ring lease, by each authority's own monotonic clock.
const (
	leaseTerm    = 10 * time.Second // a holder nobody heard of for so long has lost it
	leaseRenewal = 3 * time.Second  // a holder is heard of so often
)

// leaseRings is the lease's name in the store.
const leaseRings = "rings"

// lease is the right to give ring keys, which one authority of a store has at a
// time. No two clocks are compared: who holds it counts the term from before it
// wrote to the store, who wants it from when it saw that writing.
type lease struct {
	holder string        // names this start of this authority
	turn   chan struct{} // holds one while what follows is in use

	row     store.Row     // as last seen
	seen    time.Duration // when it was first seen so
	renewal time.Duration // ours, and to be renewed from then on
	until   time.Duration // ours until then
}

// holding is the content of the lease's row.
type holding struct {
	Holder string `json:"holder"`  // empty: given back
	Beat   uint64 `json:"renewal"` // makes each row another
}

func newLease() lease {
	b := make([]byte, 16)
	rand.Read(b)
	return lease{holder: hex.EncodeToString(b), turn: make(chan struct{}, 1)}
}

// holdRings makes sure that ring keys are ours to give, or refuses with reason
// "ring-elsewhere". It takes the lease when nobody has it, or its holder was not
// heard of for the term.
func (a *Authority) holdRings(ctx context.Context) error {
	l := &a.lease
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	now := a.clock.SinceStart()
	if now < l.renewal {
		return nil
	}
	err := a.takeLease(ctx, now)
	if err != nil && now < l.until && !errors.Is(err, wire.RingElsewhere) {
		return nil // renewed later
	}
	return err
}

// takeLease renews the lease, or takes it over. What it refuses, another has.
// The caller has the turn.
func (a *Authority) takeLease(ctx context.Context, now time.Duration) error {
	l := &a.lease
	h, err := a.seeLease(ctx, now)
	if err != nil {
		return err
	}
	ours := h.Holder == l.holder
	if !ours && h.Holder != "" && now < l.seen+leaseTerm {
		a.loseRings()
		return wire.Refuse(wire.RingElsewhere, "authority: ring lease", "held by another", "held by this one")
	}
	next, err := a.records.Seal(records.TableLease, []byte(leaseRings), holding{l.holder, h.Beat + 1})
	if err != nil {
		return err
	}
	err = a.store.SwapLease(ctx, l.row, next)
	if errors.Is(err, wire.Behind) {
		a.loseRings()
		return wire.Refuse(wire.RingElsewhere, "authority: ring lease", "taken meanwhile", "held by this one")
	}
	if err != nil {
		return err
	}
	if !ours {
		a.loseRings() // another may have given keys since
		a.log.Info("this authority gives ring keys now")
	}
	a.metrics.lease.Set(1)
	l.row, l.seen, l.renewal, l.until = next, now, now+leaseRenewal, now+leaseTerm
	return nil
}

// seeLease reads the lease and notes when it changed.
func (a *Authority) seeLease(ctx context.Context, now time.Duration) (h holding, err error) {
	row, err := a.store.Lease(ctx, leaseRings)
	if err != nil {
		return h, err
	}
	if row.Key != nil {
		fault := a.records.Open(records.TableLease, row, &h)
		a.damage.Note(a.log, records.TableLease, records.Faults(fault))
		if fault != nil {
			h = holding{Holder: "a damaged row"} // some authority's, until it was not written for the term
		}
	}
	if string(row.MAC) != string(a.lease.row.MAC) {
		a.lease.row, a.lease.seen = row, now
	}
	return h, nil
}

// loseRings drops all ring keys: from now on somebody else's count.
func (a *Authority) loseRings() {
	a.lease.renewal, a.lease.until = 0, 0
	a.metrics.lease.Set(0)
	a.rings.clear()
}

// yieldRings gives the lease back, so that another need not wait.
func (a *Authority) yieldRings(ctx context.Context) error {
	a.lease.turn <- struct{}{}
	defer func() { <-a.lease.turn }()
	if a.lease.until == 0 {
		return nil
	}
	a.loseRings()
	h, err := a.seeLease(ctx, 0)
	if err != nil || h.Holder != a.lease.holder {
		return err
	}
	next, err := a.records.Seal(records.TableLease, []byte(leaseRings), holding{Beat: h.Beat + 1})
	if err != nil {
		return err
	}
	return a.store.SwapLease(ctx, a.lease.row, next)
}
