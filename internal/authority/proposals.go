package authority

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// maxProposals bounds the proposals for one place in the history. Each carries
// an owner's signature, so only owners can reach it.
const maxProposals = 64

// kept is a proposal and the row it was read from.
type kept struct {
	policy.Proposal
	row store.Row
}

// proposals reads and checks all proposals of the store.
func (a *Authority) proposals(ctx context.Context, approved policy.Approved) ([]kept, error) {
	rows, err := a.store.Proposals(ctx)
	if err != nil {
		return nil, err
	}
	all := make([]kept, len(rows))
	for i, row := range rows {
		var r policy.Record
		if err := a.open(tableProposals, row, &r); err != nil {
			return nil, err
		}
		p, err := policy.Reopen(approved, r)
		if err != nil {
			return nil, fmt.Errorf("reading proposal %x: %w", row.Key, err)
		}
		all[i] = kept{p, row}
	}
	slices.SortFunc(all, func(x, y kept) int { return y.Record().Created.Compare(x.Record().Created) })
	return all, nil
}

// proposal finds one proposal, or refuses with "not-found".
func (a *Authority) proposal(ctx context.Context, approved policy.Approved, digest wire.Digest) (kept, error) {
	all, err := a.proposals(ctx, approved)
	if err != nil {
		return kept{}, err
	}
	for _, k := range all {
		if k.Digest() == digest {
			return k, nil
		}
	}
	return kept{}, wire.Refuse(wire.NotFound, "proposal", digest, "a proposal the authority keeps")
}

// propose takes a proposal in and, if it is ready, adopts it. Proposing a file
// again adds the signatures that are new; a proposal that is over stays over.
func (a *Authority) propose(ctx context.Context, r api.ProposeRequest) (api.Proposal, error) {
	digest := wire.Sum(r.Policy)
	_, err := a.proposal(ctx, a.current.Load().approved, digest)
	switch {
	case err == nil:
		return a.change(ctx, digest, func(now time.Time, k kept, approved policy.Approved) (policy.Proposal, error) {
			return addSignatures(now, k, approved, r.Signatures)
		})
	case !errors.Is(err, wire.NotFound):
		return api.Proposal{}, err
	}
	now, err := a.guard.now()
	if err != nil {
		return api.Proposal{}, err
	}
	approved := a.current.Load().approved
	p, err := policy.Propose(approved, policy.Step{Policy: r.Policy, Signatures: r.Signatures}, now)
	if err != nil {
		return api.Proposal{}, err
	}
	if err := a.admitRoot(r.Policy); err != nil {
		return api.Proposal{}, err
	}
	if err := a.room(ctx, approved); err != nil {
		return api.Proposal{}, err
	}
	row, err := a.seal(tableProposals, digest[:], p.Record())
	if err != nil {
		return api.Proposal{}, err
	}
	if err := a.store.AddProposal(ctx, row); err != nil {
		return api.Proposal{}, err
	}
	return a.settle(ctx, digest)
}

// admitRoot refuses a proposal that could never be adopted here: one that names
// another root.
func (a *Authority) admitRoot(raw []byte) error {
	doc, err := policy.Parse(raw)
	if err != nil {
		return err
	}
	if doc.Authority.Root != a.root {
		return wire.Refuse(wire.WrongRoot, "proposal: authority root", doc.Authority.Root, a.root)
	}
	return nil
}

// room refuses one proposal too many for the next place in the history, and
// forgets those for places that are taken.
func (a *Authority) room(ctx context.Context, approved policy.Approved) error {
	all, err := a.proposals(ctx, approved)
	if err != nil {
		return err
	}
	open := 0
	for _, k := range all {
		doc, err := policy.Parse(k.Step().Policy)
		if err != nil {
			return err
		}
		if doc.Sequence > approved.Document().Sequence {
			open++
		} else if len(all) > 2*maxProposals {
			if err := a.store.RemoveProposal(ctx, k.row); err != nil {
				return err
			}
		}
	}
	if open >= maxProposals {
		return wire.Refuse(wire.TooMany, "proposals", open, maxProposals)
	}
	return nil
}

// addSignatures adds those signatures that the proposal does not have yet.
func addSignatures(now time.Time, k kept, approved policy.Approved, signatures []string) (policy.Proposal, error) {
	p := k.Proposal
	for _, s := range signatures {
		if slices.Contains(p.Record().Signatures, s) {
			continue
		}
		var err error
		if p, err = p.Sign(approved, s, now); err != nil {
			return p, err
		}
	}
	return p, nil
}

// sign adds an owner's signature and, if that makes the proposal ready, adopts
// it.
func (a *Authority) sign(ctx context.Context, digest wire.Digest, r api.SignatureRequest) (api.Proposal, error) {
	return a.change(ctx, digest, func(now time.Time, k kept, approved policy.Approved) (policy.Proposal, error) {
		return k.Sign(approved, r.Signature, now)
	})
}

// cancel ends a proposal at its proposer's word.
func (a *Authority) cancel(ctx context.Context, digest wire.Digest, r api.CancelRequest) (api.Proposal, error) {
	return a.change(ctx, digest, func(now time.Time, k kept, approved policy.Approved) (policy.Proposal, error) {
		return k.Cancel(approved, r.Statement, r.Signature, now)
	})
}

// change applies a change to a stored proposal. It starts again when another
// change was faster, so that of two signatures at once none is lost.
func (a *Authority) change(ctx context.Context, digest wire.Digest, apply func(time.Time, kept, policy.Approved) (policy.Proposal, error)) (api.Proposal, error) {
	for {
		now, err := a.guard.now()
		if err != nil {
			return api.Proposal{}, err
		}
		approved := a.current.Load().approved
		k, err := a.proposal(ctx, approved, digest)
		if err != nil {
			return api.Proposal{}, err
		}
		p, err := apply(now, k, approved)
		if err != nil {
			return api.Proposal{}, err
		}
		row, err := a.seal(tableProposals, digest[:], p.Record())
		if err != nil {
			return api.Proposal{}, err
		}
		err = a.store.SwapProposal(ctx, k.row, row)
		if err == nil {
			return a.settle(ctx, digest)
		}
		if !errors.Is(err, wire.Behind) {
			return api.Proposal{}, err
		}
	}
}

// settle adopts what is ready and shows one proposal as it then is.
func (a *Authority) settle(ctx context.Context, digest wire.Digest) (api.Proposal, error) {
	if err := a.adoptReady(ctx); err != nil {
		return api.Proposal{}, err
	}
	return a.showProposal(ctx, digest)
}

// adoptReady adopts the proposal that has been ready longest, if any is; the
// others for its place are over by that.
func (a *Authority) adoptReady(ctx context.Context) error {
	now, err := a.guard.now()
	if err != nil {
		return err
	}
	approved := a.current.Load().approved
	all, err := a.proposals(ctx, approved)
	if err != nil {
		return err
	}
	all = slices.DeleteFunc(all, func(k kept) bool { return k.State(approved, now) != policy.Ready })
	if len(all) == 0 {
		return nil
	}
	first := slices.MinFunc(all, func(x, y kept) int { return x.Effective().Compare(y.Effective()) })
	return a.adopt(ctx, first.Step())
}

// showProposal is one proposal as the API shows it.
func (a *Authority) showProposal(ctx context.Context, digest wire.Digest) (api.Proposal, error) {
	approved := a.current.Load().approved
	k, err := a.proposal(ctx, approved, digest)
	if err != nil {
		return api.Proposal{}, err
	}
	return a.show(k, approved)
}

// showProposals are all proposals, newest first.
func (a *Authority) showProposals(ctx context.Context) (api.Proposals, error) {
	approved := a.current.Load().approved
	all, err := a.proposals(ctx, approved)
	if err != nil {
		return api.Proposals{}, err
	}
	answer := api.Proposals{Proposals: make([]api.Proposal, len(all))}
	for i, k := range all {
		if answer.Proposals[i], err = a.show(k, approved); err != nil {
			return api.Proposals{}, err
		}
	}
	return answer, nil
}

func (a *Authority) show(k kept, approved policy.Approved) (api.Proposal, error) {
	now, err := a.guard.now()
	if err != nil {
		return api.Proposal{}, err
	}
	doc, err := policy.Parse(k.Step().Policy)
	if err != nil {
		return api.Proposal{}, err
	}
	p := api.Proposal{
		Digest: k.Digest(), Sequence: doc.Sequence, State: string(k.State(approved, now)), Proposer: k.Proposer(),
		Signed: k.Signed(), Missing: k.Missing(), Quorum: k.Quorum(), Created: k.Record().Created.UTC(), Expires: k.Expires().UTC(),
		Policy: k.Record().Policy, Signatures: k.Record().Signatures,
	}
	if effective := k.Effective(); !effective.IsZero() {
		effective = effective.UTC()
		p.Effective = &effective
	}
	return p, nil
}
