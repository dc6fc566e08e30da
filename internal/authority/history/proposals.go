package history

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
	"github.com/cohort-tee/cohort/policy/policyfile"
)

// Bounds of the rows that one owner's key can cause in the store. A proposal with a quorum counts
// toward none of them: the owners together can always remove a stolen key.
const (
	MaxPending = 8  // proposals of one owner that wait for their quorum
	MaxOver    = 64 // expired or cancelled proposals of one owner that never had a quorum
	maxSettled = 64 // proposals of all owners that follow a policy which is no longer in force
)

// storedProposal is a proposal and the row it was read from.
type storedProposal struct {
	policy.Proposal
	row store.Row
}

// opened caches proposals whose rows were checked before, by the MAC and content of the row:
// verifying signatures is expensive, and any client may request the list.
type opened struct {
	mu   sync.Mutex
	rows map[string]storedProposal // guarded by mu; swapped whole
}

// proposals reads and checks all proposals in the store, newest first. It reports and skips
// damaged rows.
func (h *History) proposals(ctx context.Context, approved policy.Approved) ([]storedProposal, error) {
	rows, err := h.store.Proposals(ctx)
	if err != nil {
		return nil, err
	}
	h.opened.mu.Lock()
	defer h.opened.mu.Unlock()
	fresh := make(map[string]storedProposal, len(rows))
	var all []storedProposal
	var damaged []error
	for _, row := range rows {
		k, known := h.opened.rows[string(row.MAC)+string(row.Content)]
		if !known || string(k.row.Key) != string(row.Key) {
			if k, err = h.openProposal(row, approved); err != nil {
				damaged = append(damaged, err)
				continue
			}
		}
		fresh[string(row.MAC)+string(row.Content)] = k
		all = append(all, k)
	}
	h.opened.rows = fresh
	h.damage.Report(h.log, records.TableProposals, damaged)
	slices.SortFunc(all, func(x, y storedProposal) int { return y.Record().Created.Compare(x.Record().Created) })
	return all, nil
}

func (h *History) openProposal(row store.Row, approved policy.Approved) (storedProposal, error) {
	var r policy.Record
	if err := h.records.Open(records.TableProposals, row, &r); err != nil {
		return storedProposal{}, err
	}
	p, err := policy.Reopen(approved, r)
	if err != nil {
		return storedProposal{}, fmt.Errorf("row %x of %s: %w", row.Key, records.TableProposals, err)
	}
	return storedProposal{p, row}, nil
}

// proposal returns one proposal, or refuses with "not-found".
func (h *History) proposal(ctx context.Context, approved policy.Approved, digest wire.Digest) (storedProposal, error) {
	all, err := h.proposals(ctx, approved)
	if err != nil {
		return storedProposal{}, err
	}
	for _, k := range all {
		if k.Digest() == digest {
			return k, nil
		}
	}
	return storedProposal{}, wire.Refuse(wire.NotFound, "proposal", digest, "a proposal the authority keeps")
}

// Propose stores a proposal and adopts it if it is ready. When the file was proposed before,
// Propose adds the new signatures. An expired or cancelled proposal is not revived, unless a
// quorum of owners signs it who had not signed it before.
func (h *History) Propose(ctx context.Context, r api.ProposeRequest) (api.Proposal, error) {
	digest := wire.Sum(r.Policy)
	_, err := h.proposal(ctx, h.Current().Approved, digest)
	switch {
	case err == nil:
		return h.change(ctx, digest, func(now time.Time, k storedProposal, approved policy.Approved) (policy.Proposal, error) {
			return addSignatures(now, k, approved, r.Signatures)
		})
	case !errors.Is(err, wire.NotFound):
		return api.Proposal{}, err
	}
	now, err := h.clock.Now()
	if err != nil {
		return api.Proposal{}, err
	}
	approved := h.Current().Approved
	p, err := policy.Propose(approved, policy.Step{Policy: r.Policy, Signatures: r.Signatures}, now)
	if err != nil {
		return api.Proposal{}, err
	}
	if err := h.admitRoot(r.Policy); err != nil {
		return api.Proposal{}, err
	}
	if err := h.makeRoom(ctx, approved, p, now); err != nil {
		return api.Proposal{}, err
	}
	row, err := h.records.Seal(records.TableProposals, digest[:], p.Record())
	if err != nil {
		return api.Proposal{}, err
	}
	if err := h.store.PutProposal(ctx, row, h.records.Believed(records.TableProposals)); err != nil {
		return api.Proposal{}, err
	}
	return h.settle(ctx, digest)
}

// admitRoot refuses a proposal that names a different root: it could never be adopted here.
func (h *History) admitRoot(raw []byte) error {
	doc, err := policyfile.Parse(raw)
	if err != nil {
		return err
	}
	if doc.Authority.Root != h.root {
		return wire.Refuse(wire.WrongRoot, "proposal: authority root", doc.Authority.Root, h.root)
	}
	return nil
}

// makeRoom refuses a proposal when its proposer has too many pending, and removes the oldest
// finished proposals beyond the bounds. A proposal with a quorum always has room.
func (h *History) makeRoom(ctx context.Context, approved policy.Approved, p policy.Proposal, now time.Time) error {
	all, err := h.proposals(ctx, approved) // newest first
	if err != nil {
		return err
	}
	live, over, settled := 0, map[string]int{}, 0
	for _, k := range all {
		var drop bool
		switch state := k.State(approved, now); {
		case k.PredecessorDigest() != approved.Document().Digest(): // can never be adopted
			settled++
			drop = settled > maxSettled
		case state == policy.Pending && k.Proposer() == p.Proposer():
			live++
		case (state == policy.Expired || state == policy.Cancelled) && k.Quorate().IsZero():
			over[k.Proposer()]++
			drop = over[k.Proposer()] > MaxOver
		}
		if drop {
			if err := h.store.RemoveProposal(ctx, k.row); err != nil {
				return err
			}
		}
	}
	if p.Quorate().IsZero() && live >= MaxPending {
		return wire.Refuse(wire.TooMany, "proposals of "+p.Proposer()+" without a quorum", live,
			fmt.Sprint("fewer than ", MaxPending, "; cancel one, or propose with a quorum of signatures"))
	}
	return nil
}

// addSignatures adds the signatures that the proposal does not have yet, or renews a finished
// proposal.
func addSignatures(now time.Time, k storedProposal, approved policy.Approved, signatures []string) (policy.Proposal, error) {
	p := k.Proposal
	switch p.State(approved, now) {
	case policy.Expired, policy.Cancelled, policy.Adopted:
		return p.Renew(approved, signatures, now)
	}
	for _, s := range signatures {
		if slices.Contains(p.Record().Signatures, s) {
			continue
		}
		var err error
		if p, err = p.AddSignature(approved, s, now); err != nil {
			return p, err
		}
	}
	return p, nil
}

// AddSignature adds an owner's signature and, if that makes the proposal ready, adopts it.
func (h *History) AddSignature(ctx context.Context, digest wire.Digest, r api.SignatureRequest) (api.Proposal, error) {
	return h.change(ctx, digest, func(now time.Time, k storedProposal, approved policy.Approved) (policy.Proposal, error) {
		return k.AddSignature(approved, r.Signature, now)
	})
}

// Cancel ends a proposal on the signed request of its proposer.
func (h *History) Cancel(ctx context.Context, digest wire.Digest, r api.CancelRequest) (api.Proposal, error) {
	return h.change(ctx, digest, func(now time.Time, k storedProposal, approved policy.Approved) (policy.Proposal, error) {
		return k.Cancel(approved, r.Statement, r.Signature, now)
	})
}

// change applies a change to a stored proposal. It tries again when another change was faster, so
// that two signatures sent at once are both kept.
func (h *History) change(ctx context.Context, digest wire.Digest, apply func(time.Time, storedProposal, policy.Approved) (policy.Proposal, error)) (api.Proposal, error) {
	for {
		now, err := h.clock.Now()
		if err != nil {
			return api.Proposal{}, err
		}
		approved := h.Current().Approved
		k, err := h.proposal(ctx, approved, digest)
		if err != nil {
			return api.Proposal{}, err
		}
		p, err := apply(now, k, approved)
		if err != nil {
			return api.Proposal{}, err
		}
		row, err := h.records.Seal(records.TableProposals, digest[:], p.Record())
		if err != nil {
			return api.Proposal{}, err
		}
		if string(row.MAC) == string(k.row.MAC) {
			return h.settle(ctx, digest) // nothing is new
		}
		err = h.counts.rewrite(digest, k.row.MAC, row.MAC, func() error { return h.store.SwapProposal(ctx, k.row, row) })
		if err == nil {
			return h.settle(ctx, digest)
		}
		if !errors.Is(err, wire.Behind) {
			return api.Proposal{}, err
		}
	}
}

// settle adopts what is ready and returns the new state of one proposal. It reports an error of
// the adoption only if this proposal is still ready: a fault of another proposal is not its own.
func (h *History) settle(ctx context.Context, digest wire.Digest) (api.Proposal, error) {
	adopting := h.adoptReady(ctx)
	p, err := h.ShowProposal(ctx, digest)
	if err == nil && p.State == string(policy.Ready) {
		err = adopting
	}
	return p, err
}

// adoptReady counts delays, and of the proposals that are ready it adopts the one that was ready
// first. Its rivals can then no longer follow. When one cannot be adopted, adoptReady tries the
// next.
func (h *History) adoptReady(ctx context.Context) error {
	now, err := h.clock.Now()
	if err != nil {
		return err
	}
	approved := h.Current().Approved
	all, err := h.countDelays(ctx, approved, now)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(k storedProposal) bool { return k.State(approved, now) != policy.Ready })
	slices.SortFunc(all, func(x, y storedProposal) int { return x.readySince().Compare(y.readySince()) })
	var faults []error
	for _, k := range all {
		err := h.Adopt(ctx, api.HistoryEntry{Policy: k.NextStep().Policy, Signatures: k.NextStep().Signatures})
		if err == nil {
			return nil
		}
		faults = append(faults, fmt.Errorf("adopting proposal %s: %w", k.Digest(), err))
	}
	return errors.Join(faults...)
}

// readySince returns when the proposal became ready, by which ready proposals are ordered.
func (k storedProposal) readySince() time.Time { return k.Quorate().Add(k.Delay()) }

// ShowProposal returns one proposal in the form of the API.
func (h *History) ShowProposal(ctx context.Context, digest wire.Digest) (api.Proposal, error) {
	approved := h.Current().Approved
	k, err := h.proposal(ctx, approved, digest)
	if err != nil {
		return api.Proposal{}, err
	}
	now, err := h.clock.Now()
	if err != nil {
		return api.Proposal{}, err
	}
	return k.toAPI(approved, now)
}

// ShowProposals returns all proposals, newest first, without files and signatures, so that the
// response has a bound whatever owners propose.
func (h *History) ShowProposals(ctx context.Context) (api.Proposals, error) {
	approved := h.Current().Approved
	all, err := h.proposals(ctx, approved)
	if err != nil {
		return api.Proposals{}, err
	}
	now, err := h.clock.Now()
	if err != nil {
		return api.Proposals{}, err
	}
	response := api.Proposals{Proposals: make([]api.Proposal, len(all)), Damaged: h.damage.RowsOf(records.TableProposals)}
	for i, k := range all {
		p, err := k.toAPI(approved, now)
		if err != nil {
			return api.Proposals{}, err
		}
		p.Policy, p.Signatures = nil, nil
		response.Proposals[i] = p
	}
	return response, nil
}

func (k storedProposal) toAPI(approved policy.Approved, now time.Time) (api.Proposal, error) {
	doc, err := policyfile.Parse(k.NextStep().Policy)
	if err != nil {
		return api.Proposal{}, err
	}
	p := api.Proposal{
		Digest: k.Digest(), Sequence: doc.Sequence, State: string(k.State(approved, now)), Proposer: k.Proposer(),
		Signed: k.Signed(), Missing: k.Missing(), Quorum: k.Quorum(), Created: k.Record().Created.UTC(), Expires: k.Expires().UTC(),
		Waited: int64(k.Waited() / time.Second), Delay: int64(k.Delay() / time.Second),
		Policy: k.Record().Policy, Signatures: k.Record().Signatures,
	}
	return p, nil
}

// Each authority counts the delay of a policy that loosens by its own monotonic clock, because
// the host can set the wall clock.
const (
	countEvery = 5 * time.Second  // how often the time waited is written
	MaxCount   = 60 * time.Second // one entry adds at most this: a stopped process does not count as waiting
	countLost  = 15 * time.Second // after this long without a write, another authority takes the count over
)

// counts are the proposals' rows as this authority last read or wrote them.
type counts struct {
	mu   sync.Mutex
	rows map[wire.Digest]count // guarded by mu, by proposal
}

// count is one row: its MAC, when this authority first read or wrote it, and whether this
// authority wrote it. Time counts only from an own write, so that no time counts twice when rows
// are copied between stores.
type count struct {
	mac   string
	since time.Duration // by the monotonic clock
	own   bool
}

// countDelays returns the proposals, newest first, after adding the time passed to those that
// wait for their delay. It leaves a row to the authority that counts it, until that authority has
// not written for countLost.
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

// timeToAdd returns the time to add to a row now, and whether to write the row. It adds nothing
// when this authority takes over the count.
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

// forget removes rows that are no longer in the store.
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

// rewrite changes a row, from the MAC old to the MAC next, without adding time, for example when
// an owner signs. If this authority counts the row, it continues to count it.
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
