package history

import (
	"bytes"
	"context"
	"crypto/hmac"
	"fmt"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/internal/api"
	"github.com/cohort-tee/cohort/internal/authority/records"
	"github.com/cohort-tee/cohort/internal/authority/store"
	"github.com/cohort-tee/cohort/internal/wire"
	"github.com/cohort-tee/cohort/policy"
)

// How many of its newest rows an authority compares with the history: pastRows at start, few
// enough that a restart can read them; recentRows at each tick, for those written since the last
// tick.
const (
	pastRows   = 1000
	recentRows = 8
)

// Bounds of the stored contradictions.
const (
	maxForks     = 64 // pairs of heads; the first are kept
	maxForkHeads = 64 // further heads of the other history of one pair
)

// doubt has the rows of this root that contradict the history in force. There are two kinds. A
// row may name a head that the history does not know: newer policy exists, and a client must push
// it. A head may have taken effect in another history, and neither history extends the other: the
// store was forked, and nothing repairs that.
type doubt struct {
	mu    sync.Mutex
	lost  map[wire.Digest]string // guarded by mu: head → the row that names it
	rest  []store.Row            // guarded by mu: rows of the history that do not follow its head
	forks []fork                 // guarded by mu
}

// fork is one contradiction, in the form of its row.
type fork struct {
	api.Contradiction
	Heads []wire.Digest `json:"heads,omitempty"` // further heads of the other history
}

// hasHead reports whether a head belongs to the other history.
func (f fork) hasHead(head wire.Digest) bool {
	return f.Other == head || slices.Contains(f.Heads, head)
}

// seenFrom returns the contradiction with approved as the kept history: if the store was restored
// from an old copy, the row may name the histories the other way round.
func (f fork) seenFrom(approved policy.Approved) fork {
	if !approved.Knows(f.Kept) && approved.Knows(f.Other) {
		f.Kept, f.Other, f.Heads = f.Other, f.Kept, nil
	}
	return f
}

func (d *doubt) restOf() []store.Row {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rest
}

func (d *doubt) setRest(rest []store.Row) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rest = rest
}

// names reports whether a row of this root names a head that the history does not know.
func (d *doubt) names(head wire.Digest) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lost[head] != ""
}

// Contradictions returns the contradictions in the order in which they were found, each once.
func (h *History) Contradictions() []api.Contradiction {
	approved := h.Current().Approved
	h.doubt.mu.Lock()
	defer h.doubt.mu.Unlock()
	var all []api.Contradiction
	for _, f := range h.doubt.forks {
		is := f.seenFrom(approved).Contradiction
		if !slices.ContainsFunc(all, func(c api.Contradiction) bool { return c.Kept == is.Kept && c.Other == is.Other }) {
			all = append(all, is)
		}
	}
	return all
}

// Behind refuses, with "behind", while a row of this root names a policy head that the history
// does not know, or the history in the store is not whole. The authority then issues nothing,
// until a client pushes the signed files. A head of a history that is known to contradict this
// one is ignored: it can never be reached.
func (h *History) Behind() error {
	snap := h.Current()
	h.doubt.mu.Lock()
	defer h.doubt.mu.Unlock()
	for head := range h.doubt.lost {
		if snap.Approved.Knows(head) || slices.ContainsFunc(h.doubt.forks, func(f fork) bool { return f.seenFrom(snap.Approved).hasHead(head) }) {
			delete(h.doubt.lost, head)
		}
	}
	const want = "the signed files up to it: push the history, or start with --history FILE"
	for head, place := range h.doubt.lost {
		h.metrics.Behind.Set(1)
		return wire.Refuse(wire.Behind, "authority: "+place+" names the policy head", head, want)
	}
	if len(h.doubt.rest) > 0 {
		h.metrics.Behind.Set(1)
		return wire.Refuse(wire.Behind, fmt.Sprintf("authority: row %x of the history", h.doubt.rest[0].Key), "a row that does not follow, or is damaged", want)
	}
	h.metrics.Behind.Set(0)
	return nil
}

// mayFollow decides whether a step that leads to a head may be adopted: always with the mark of
// this root, otherwise only when no newer policy is known to exist.
func (h *History) mayFollow(head wire.Digest, mark []byte) error {
	if len(mark) > 0 {
		if !hmac.Equal(mark, h.records.AdoptionMAC(head)) {
			return wire.Refuse(wire.BadSignature, "history: mark of adoption", fmt.Sprintf("%x", mark), "a mark made under this root")
		}
		return nil
	}
	if h.doubt.names(head) {
		return nil
	}
	return h.Behind()
}

// lookBack reads the newest rows that name a policy head. Call it before reading the history: a
// step adopted in between would otherwise look lost.
func (h *History) lookBack(ctx context.Context, limit int) error {
	rows, err := h.store.ReadLog(ctx, store.Query{Kind: records.KindIssued, Limit: limit})
	if err != nil {
		return err
	}
	found := map[wire.Digest]string{}
	var damaged []error
	for _, r := range rows {
		var entry api.LogEntry
		if err := h.records.Open(records.TableLog, r.Row, &entry); err != nil {
			damaged = append(damaged, err)
		} else {
			found[entry.Head] = fmt.Sprint("row ", r.Sequence, " of the log")
			if limit == pastRows {
				h.clock.Raise(entry.Time)
			}
		}
	}
	if limit == pastRows {
		h.damage.Report(h.log, records.TableLog, damaged)
	}
	if _, known, err := h.BackupRecord(ctx); err != nil {
		return err
	} else if !known.Head.IsZero() {
		found[known.Head] = "the record of the backup"
	}
	snap := h.Current()
	h.doubt.mu.Lock()
	defer h.doubt.mu.Unlock()
	if h.doubt.lost == nil {
		h.doubt.lost = map[wire.Digest]string{}
	}
	for head, place := range found {
		if !head.IsZero() && (snap == nil || !snap.Approved.Knows(head)) {
			h.doubt.lost[head] = place
		}
	}
	return nil
}

// compare handles pushed entries that differ from the history at an index. Entries with the mark
// of this root took effect: that is a contradiction. Entries without it are only files that
// owners signed.
func (h *History) compare(ctx context.Context, snap *Snapshot, index int, entries []api.HistoryEntry) error {
	var from wire.Digest
	heads := snap.Approved.Heads()
	if index > 0 {
		from = heads[index-1]
	}
	var others []wire.Digest
	for _, e := range entries {
		from = policy.NextHead(from, e.Policy)
		if !hmac.Equal(e.Adopted, h.records.AdoptionMAC(from)) {
			break
		}
		others = append(others, from)
	}
	return h.contradicted(ctx, heads[index], others)
}

// otherHistory refuses a store whose history forks from the one in memory, though both are of
// this root.
func (h *History) otherHistory(ctx context.Context, snap *Snapshot, st stored) error {
	ours, theirs := snap.Approved.Heads(), st.approved.Heads()
	at := 0
	for at < min(len(ours), len(theirs))-1 && ours[at] == theirs[at] {
		at++
	}
	err := h.contradicted(ctx, ours[at], theirs[at:])
	if err == nil {
		err = wire.Refuse(wire.StoreForeign, "store: head of history", st.approved.PolicyHead(), snap.Approved.PolicyHead())
	}
	return err
}

// setAside removes rows from the history that took effect in another history, once that
// contradiction is recorded. Other rows that do not follow stay: a client may push the missing
// steps.
func (h *History) setAside(ctx context.Context, st stored) error {
	var others []branch
	var kept []store.Row
	for _, r := range st.rest {
		var entry api.HistoryEntry
		var head wire.Digest
		copy(head[:], r.Key)
		if h.records.Open(records.TableHistory, r, &entry) != nil || !extendBranch(&others, st.approved.Heads(), head, entry.Policy) {
			kept = append(kept, r)
		}
	}
	for _, b := range others {
		if err := h.contradicted(ctx, b.kept, b.heads); err != nil {
			return err
		}
	}
	if len(others) == 0 {
		return nil
	}
	if err := h.store.ReplaceSteps(ctx, st.approved.PolicyHead(), st.rest, kept); err != nil {
		return err
	}
	_, err := h.readSteps(ctx)
	return err
}

// branch is a run of heads that took effect instead of the head kept and its successors.
type branch struct {
	kept  wire.Digest
	heads []wire.Digest
}

// extendBranch reports whether a step to head branches off a history, directly or after steps of
// a branch in others, and adds head to that branch.
func extendBranch(others *[]branch, history []wire.Digest, head wire.Digest, step []byte) bool {
	for i, b := range *others {
		if policy.NextHead(b.heads[len(b.heads)-1], step) == head {
			(*others)[i].heads = append(b.heads, head)
			return true
		}
	}
	var from wire.Digest
	for _, next := range history {
		if next != head && policy.NextHead(from, step) == head {
			*others = append(*others, branch{next, []wire.Digest{head}})
			return true
		}
		from = next
	}
	return false
}

// contradicted records that heads of another history took effect under this root, the first
// instead of the head kept. It keeps both digests, in memory and in the store.
func (h *History) contradicted(ctx context.Context, kept wire.Digest, others []wire.Digest) error {
	if len(others) == 0 {
		return nil
	}
	f := fork{api.Contradiction{Kept: kept, Other: others[0], Seen: h.clock.LastNow().UTC()}, slices.Clone(others[1:min(len(others), 1+maxForkHeads)])}
	if !h.doubt.addFork(f) {
		return nil
	}
	h.log.Error("two policies took effect under this root in one place of the history: the store was copied or put back, and both were served",
		"kept", kept, "other", others[0])
	return h.keepForks(ctx)
}

// addFork adds a contradiction, and reports whether any of it is new.
func (d *doubt) addFork(f fork) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	at := slices.IndexFunc(d.forks, func(known fork) bool { return known.Kept == f.Kept && known.Other == f.Other })
	if at < 0 && len(d.forks) < maxForks {
		d.forks = append(d.forks, f)
		return true
	}
	if at < 0 {
		return false
	}
	known := d.forks[at]
	more := false
	for _, head := range f.Heads {
		if len(known.Heads) < maxForkHeads && !known.hasHead(head) {
			known.Heads, more = append(slices.Clip(known.Heads), head), true
		}
	}
	if f.Seen.Before(known.Seen) {
		known.Seen = f.Seen
	}
	d.forks[at] = known
	return more
}

// keepForks merges the contradictions in memory and in the store: afterwards both have all.
func (h *History) keepForks(ctx context.Context) error {
	rows, err := h.store.Forks(ctx)
	if err != nil {
		return err
	}
	var damaged []error
	written := map[string][]byte{}
	for _, r := range rows {
		var f fork
		if err := h.records.Open(records.TableForks, r, &f); err != nil {
			damaged = append(damaged, err)
			continue
		}
		written[string(r.Key)] = r.Content
		h.doubt.addFork(f)
	}
	h.damage.Report(h.log, records.TableForks, damaged)
	h.doubt.mu.Lock()
	forks := slices.Clone(h.doubt.forks)
	h.doubt.mu.Unlock()
	h.metrics.Forks.Set(float64(len(forks)))
	for _, f := range forks {
		row, err := h.records.Seal(records.TableForks, slices.Concat(f.Kept[:], f.Other[:]), f)
		if err != nil {
			return err
		}
		if bytes.Equal(written[string(row.Key)], row.Content) {
			continue
		}
		if err := h.store.PutFork(ctx, row); err != nil {
			return err
		}
	}
	return nil
}
