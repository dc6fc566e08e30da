package authority

import (
	"context"
	"errors"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// maxHistoryBytes bounds the policy files in one answer, so that it stays below
// [wire.MaxResponse] in its JSON form. The rest is asked for from where it ends.
const maxHistoryBytes = 8 << 20

// history is the run of steps from an index on.
func (s *snapshot) history(from int) api.History {
	h := api.History{From: from, Head: s.approved.Head(), Entries: []api.HistoryEntry{}}
	size := 0
	for _, entry := range s.entries[min(from, len(s.entries)):] {
		if size += len(entry.Policy) + len(entry.Signatures)*wire.MaxSignature; size > maxHistoryBytes && len(h.Entries) > 0 {
			break
		}
		h.Entries = append(h.Entries, entry)
	}
	return h
}

// policy is the policy in force.
func (s *snapshot) policy() api.Policy {
	doc := s.doc()
	return api.Policy{Sequence: doc.Sequence, Digest: doc.Digest(), Head: s.approved.Head(), Policy: doc.Raw()}
}

// push takes a history that somebody shows us. Steps we have must be the same;
// newer ones that carry the mark of this root took effect once and do so again
// at once; others become proposals and wait like any other.
func (a *Authority) push(ctx context.Context, h api.History) (api.Policy, error) {
	if h.From < 0 {
		return api.Policy{}, wire.Refuse(wire.BadRequest, "history: from", h.From, "0 or more")
	}
	for i := range h.Entries {
		if err := a.pushOne(ctx, h.From+i, h.Entries[i:]); err != nil {
			return api.Policy{}, err
		}
	}
	return a.current.Load().policy(), nil
}

// pushOne takes the first of some entries, which stands at an index of the history.
func (a *Authority) pushOne(ctx context.Context, index int, entries []api.HistoryEntry) error {
	snap, entry := a.current.Load(), entries[0]
	if index > len(snap.entries) {
		return wire.Refuse(wire.WrongSequence, "history: index", index, len(snap.entries))
	}
	if index < len(snap.entries) {
		err := snap.sameStep(index, entry)
		if err != nil {
			err = errors.Join(err, a.compare(ctx, snap, index, entries))
		}
		return err
	}
	if len(entry.Adopted) > 0 {
		return a.adopt(ctx, entry)
	}
	if a.leadsToNamed(snap.approved.Head(), entries) {
		entry.Adopted = a.records.AdoptionMAC(policy.NextHead(snap.approved.Head(), entry.Policy)) // a row of this root names it
		return a.adopt(ctx, entry)
	}
	if policy.IsStatement(entry.Policy) {
		return a.adopt(ctx, entry) // needs no mark: it takes effect whenever it is shown
	}
	_, err := a.propose(ctx, api.ProposeRequest{Policy: entry.Policy, Signatures: entry.Signatures})
	return err
}

// leadsToNamed reports whether steps lead from a head to one that a row of this root names:
// then all of them took effect.
func (a *Authority) leadsToNamed(head wire.Digest, entries []api.HistoryEntry) bool {
	for _, e := range entries {
		if head = policy.NextHead(head, e.Policy); a.doubt.names(head) {
			return true
		}
	}
	return false
}

// sameStep refuses another step than ours in a place that is taken: a history
// of another genesis, or a fork.
func (s *snapshot) sameStep(index int, entry api.HistoryEntry) error {
	got, want := wire.Sum(entry.Policy), wire.Sum(s.entries[index].Policy)
	switch {
	case got == want:
		return nil
	case index == 0:
		return wire.Refuse(wire.WrongGenesis, "history: genesis", got, want)
	}
	return wire.Refuse(wire.WrongSequence, "history: another policy in this place", got, want)
}
