package history

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// How the delay of a policy that loosens is counted, by each authority's own
// monotonic clock: the host sets the other one.
const (
	countEvery = 5 * time.Second  // time waited is written down so often
	MaxCount   = 60 * time.Second // one entry adds no more: a stopped process waits for nothing
	countLost  = 15 * time.Second // a row that was not written for so long has lost its counter
)

// counts are the proposals' rows as this authority last saw them.
type counts struct {
	mu   sync.Mutex
	rows map[wire.Digest]count // guarded by mu, by proposal
}

// count is one row: its tag, since when it is known so, and whether this
// authority wrote it. Time counts only from an entry of its own, so that no stretch of
// time counts twice when rows are moved between stores.
type count struct {
	mac   string
	since time.Duration // by the monotonic clock
	own   bool
}

// countDelays returns the proposals, newest first, after it has added what has passed to those that
// wait for their delay. A row that another authority counts is left to it until it has not written
// for a while.
func (h *History) countDelays(ctx context.Context, approved policy.Approved, at time.Time) ([]storedProposal, error) {
	h.counts.mu.Lock()
	defer h.counts.mu.Unlock()
	now := h.clock.SinceStart()
	all, err := h.proposals(ctx, approved)
	if err != nil {
		return nil, err
	}
	h.counts.forget(all)
	for i, k := range all {
		if k.State(approved, at) != policy.Waiting {
			continue
		}
		entry, due := h.counts.timeToAdd(k, now)
		if !due {
			continue
		}
		next := k.Counted(entry, h.holder)
		row, err := h.records.Seal(records.TableProposals, k.row.Key, next.Record())
		if err != nil {
			return nil, err
		}
		switch err := h.store.SwapProposal(ctx, k.row, row); {
		case errors.Is(err, wire.Behind): // another authority wrote it, or an owner signed
			continue
		case err != nil:
			return nil, err
		}
		h.counts.rows[k.Digest()] = count{string(row.MAC), now, true}
		all[i] = storedProposal{next, row}
	}
	return all, nil
}

// timeToAdd returns how much to add to a row now, if it is to be written. Nothing is added where
// this authority takes a row over.
func (c *counts) timeToAdd(k storedProposal, now time.Duration) (time.Duration, bool) {
	seen, known := c.rows[k.Digest()]
	if !known || seen.mac != string(k.row.MAC) {
		c.rows[k.Digest()] = count{mac: string(k.row.MAC), since: now}
		return 0, k.Record().Counter == ""
	}
	passed := now - seen.since
	if !seen.own {
		return 0, passed >= countLost
	}
	passed = min(passed, MaxCount)
	return passed, passed >= countEvery || k.Waited()+passed >= k.Delay()
}

// forget drops rows that are gone.
func (c *counts) forget(all []storedProposal) {
	if c.rows == nil {
		c.rows = make(map[wire.Digest]count)
	}
	for digest := range c.rows {
		if !slices.ContainsFunc(all, func(k storedProposal) bool { return k.Digest() == digest }) {
			delete(c.rows, digest)
		}
	}
}

// rewrite makes a change of a row, from one tag to the next, that is none of the time
// waited, as when an owner signs: an authority that counts goes on counting.
func (c *counts) rewrite(digest wire.Digest, old, next []byte, change func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := change(); err != nil {
		return err
	}
	if seen, ok := c.rows[digest]; ok && seen.mac == string(old) {
		seen.mac = string(next)
		c.rows[digest] = seen
	}
	return nil
}
