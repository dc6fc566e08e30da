package history

import (
	"context"
	"errors"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// maxHistoryBytes bounds the policy files in one response, so that its JSON form stays below
// [wire.MaxResponse]. The client requests the remaining steps from the next index.
const maxHistoryBytes = 8 << 20

// StepsFrom returns the steps from an index on, as many as one response can contain.
func (s *Snapshot) StepsFrom(from int) api.History {
	st := api.History{From: from, Head: s.Approved.PolicyHead(), Entries: []api.HistoryEntry{}}
	size := 0
	for _, entry := range s.Entries[min(from, len(s.Entries)):] {
		if size += len(entry.Policy) + len(entry.Signatures)*wire.MaxSignature; size > maxHistoryBytes && len(st.Entries) > 0 {
			break
		}
		st.Entries = append(st.Entries, entry)
	}
	return st
}

// Policy returns the policy in force.
func (s *Snapshot) Policy() api.Policy {
	doc := s.Approved.Document()
	return api.Policy{Sequence: doc.Sequence, Digest: doc.Digest(), Head: s.Approved.PolicyHead(), Policy: doc.Source()}
}

// Push applies a history that a client sends. Steps that this authority has must be equal. Newer
// steps with the mark of this root took effect once, and take effect again at once. Other steps
// become proposals and wait like any proposal.
func (h *History) Push(ctx context.Context, st api.History) (api.Policy, error) {
	if st.From < 0 {
		return api.Policy{}, wire.Refuse(wire.BadRequest, "history: from", st.From, "0 or more")
	}
	for i := range st.Entries {
		if err := h.pushOne(ctx, st.From+i, st.Entries[i:]); err != nil {
			return api.Policy{}, err
		}
	}
	return h.Current().Policy(), nil
}

// pushOne applies the first of some entries, whose index in the history is index.
func (h *History) pushOne(ctx context.Context, index int, entries []api.HistoryEntry) error {
	snap, entry := h.Current(), entries[0]
	if index > len(snap.Entries) {
		return wire.Refuse(wire.WrongSequence, "history: index", index, len(snap.Entries))
	}
	if index < len(snap.Entries) {
		err := snap.sameStep(index, entry)
		if err != nil {
			err = errors.Join(err, h.compare(ctx, snap, index, entries))
		}
		return err
	}
	if len(entry.Adopted) > 0 {
		return h.Adopt(ctx, entry)
	}
	if h.leadsToNamed(snap.Approved.PolicyHead(), entries) {
		entry.Adopted = h.records.AdoptionMAC(policy.NextHead(snap.Approved.PolicyHead(), entry.Policy)) // a row of this root names it
		return h.Adopt(ctx, entry)
	}
	if policy.IsStatement(entry.Policy) {
		return h.Adopt(ctx, entry) // needs no mark: a statement takes effect whenever it is received
	}
	_, err := h.Propose(ctx, api.ProposeRequest{Policy: entry.Policy, Signatures: entry.Signatures})
	return err
}

// leadsToNamed reports whether steps lead from a head to a head that a row of this root names:
// then all of them took effect.
func (h *History) leadsToNamed(head wire.Digest, entries []api.HistoryEntry) bool {
	for _, e := range entries {
		if head = policy.NextHead(head, e.Policy); h.doubt.names(head) {
			return true
		}
	}
	return false
}

// sameStep refuses a step that differs from the history's step at an index: a history of a
// different genesis, or a fork.
func (s *Snapshot) sameStep(index int, entry api.HistoryEntry) error {
	got, want := wire.Sum(entry.Policy), wire.Sum(s.Entries[index].Policy)
	switch {
	case got == want:
		return nil
	case index == 0:
		return wire.Refuse(wire.WrongGenesis, "history: genesis", got, want)
	}
	return wire.Refuse(wire.WrongSequence, "history: another policy in this place", got, want)
}
