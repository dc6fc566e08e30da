package manager

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// relay distributes sealed sessions to all units of their cluster, in batches, and stores a
// copy of each. The goroutine of run owns the batches and the journal. Each unit has at most
// one item in the queue, so that no unit delays the others.
type relay struct {
	copies     *copies
	successors *successors
	journal    *journal
	clock      func() time.Time
	log        *slog.Logger
	queue      chan incoming
	ended      chan struct{}
	tasks      sync.WaitGroup // running forwardSessions

	out            sinks
	unitBatches    map[bus.Cluster][]byte // pending batches for units
	managerBatches map[bus.Cluster][]byte // pending batches for other managers
	pending        bool                   // an item arrived since the last push
	damaged        bool                   // the last write to the journal failed, and that was logged
}

// sinks are the functions that push batches.
type sinks struct {
	units    func(bus.Cluster, []byte)
	managers func(bus.Cluster, []byte) error // nil without other managers
}

// incoming is a received item.
type incoming struct {
	cluster     bus.Cluster
	item        bus.Item
	fromManager bool // received from another manager, which also sends it to the others
	fromStream  bool // read from the NATS stream; it is stored and not pushed
}

func newRelay(c *copies, l *successors, j *journal, config Config) *relay {
	return &relay{
		copies: c, successors: l, journal: j, clock: config.Clock, log: config.Log,
		queue: make(chan incoming, 1024), ended: make(chan struct{}), unitBatches: make(map[bus.Cluster][]byte), managerBatches: make(map[bus.Cluster][]byte),
	}
}

// acceptFromUnit queues an item that a unit published. It blocks while the queue is full. It refuses
// with [wire.WrongIdentity] an item that is not sealed for the unit's own identity or role,
// and a session of another task or group.
func (r *relay) acceptFromUnit(u bus.Unit, item bus.Item) error {
	sealedFor, ok := sealedForItem(item)
	if !ok || sealedFor != u.Identity && (u.Group == "" || sealedFor != wire.RoleID(u.Identity, u.Role)) {
		return wire.Refuse(wire.WrongIdentity, "relay: identity that a session is sealed for", sealedFor, u.Identity)
	}
	if other := r.successors.holderOf(r.copies.otherClustersWith(item.Session, u.Cluster)); other != "" && !sameTenant(other, u.Holder()) {
		return wire.Refuse(wire.WrongIdentity, "relay: holder of the session", u.Holder(), other)
	}
	r.enqueue(incoming{cluster: u.Cluster, item: item})
	return nil
}

// sameTenant reports whether two holders are the same task or roles of the same group.
func sameTenant(a, b string) bool {
	groupA, _, inA := strings.Cut(a, "/")
	groupB, _, inB := strings.Cut(b, "/")
	return groupA == groupB && inA == inB
}

// acceptFromManager queues an item that another manager pushed. It takes ownership of the item's bytes.
func (r *relay) acceptFromManager(c bus.Cluster, item bus.Item) {
	if _, ok := sealedForItem(item); ok {
		r.enqueue(incoming{cluster: c, item: item, fromManager: true})
	}
}

func (r *relay) enqueue(a incoming) {
	select {
	case r.queue <- a:
	case <-r.ended:
	}
}

// run relays until ctx ends, and then pushes the pending batches. An item that arrives more
// than batchGap after the last push is pushed at once; one that arrives earlier waits, to
// share a batch.
func (r *relay) run(ctx context.Context, out sinks) {
	r.out = out
	defer close(r.ended)
	timer := time.NewTimer(batchGap)
	timer.Stop()
	var last time.Time // time of the last push
	for {
		select {
		case a := <-r.queue:
			if !r.pending {
				timer.Reset(batchGap - time.Since(last)) // fires at once if the gap has passed
			}
			r.distribute(a)
		case <-timer.C:
			r.pushAll()
			last = time.Now()
		case <-ctx.Done():
			r.pushAll()
			return
		}
	}
}

// distribute stores an item, and appends it to the batches of its cluster, of the cluster's
// successors, and for other managers.
func (r *relay) distribute(a incoming) {
	r.pending = true
	if r.copies.store(a.cluster, a.item, r.clock()) {
		r.logJournalError(r.journal.append(a.cluster, a.item))
	}
	if a.fromStream {
		return
	}
	for _, cluster := range append(r.successors.successorsOf(a.cluster), a.cluster) {
		r.unitBatches[cluster] = r.appendToBatch(cluster, r.unitBatches[cluster], a.item, r.pushUnits)
	}
	if !a.fromManager && r.out.managers != nil {
		r.managerBatches[a.cluster] = r.appendToBatch(a.cluster, r.managerBatches[a.cluster], a.item, r.pushManagers)
	}
}

// appendToBatch appends an item to a batch. It pushes the batch first if the item does not fit.
func (r *relay) appendToBatch(c bus.Cluster, batch []byte, item bus.Item, push func(bus.Cluster, []byte)) []byte {
	if len(batch)+item.Size() > bus.MaxBatch {
		push(c, batch)
		batch = batch[:0]
	}
	return item.Append(batch)
}

// forwardSessions sends a unit the stored sessions of a predecessor, without those that the unit's
// own cluster has sealed again. It stops when the unit's connection ends.
func (r *relay) forwardSessions(from bus.Cluster, to bus.Unit, push func([]byte) bool) {
	var batch []byte
	for _, item := range r.copies.ofCluster(from) {
		if !r.isMissing(to.Cluster, item.Session) {
			continue
		}
		if len(batch)+item.Size() > bus.MaxBatch {
			if !push(batch) {
				return
			}
			batch = batch[:0]
		}
		batch = item.Append(batch)
	}
	if len(batch) > 0 {
		push(batch)
	}
}

// restoreFromStream stores the items that read returns for sessions without a stored copy. An item that a
// unit published in the meantime is newer and stays.
func (r *relay) restoreFromStream(read func(func(bus.Cluster, bus.Item)) error) (items int, err error) {
	missed := newCopies(r.copies.maxBytes)
	err = read(func(c bus.Cluster, item bus.Item) {
		if r.isMissing(c, item.Session) {
			missed.store(c, item, r.clock())
		}
	})
	return items, errors.Join(err, missed.forEach(func(c bus.Cluster, item bus.Item) error {
		if r.isMissing(c, item.Session) {
			items++
			r.enqueue(incoming{cluster: c, item: item, fromStream: true})
		}
		return nil
	}))
}

// isMissing reports whether there is no stored copy of a session.
func (r *relay) isMissing(c bus.Cluster, session wire.SessionID) bool {
	_, has := r.copies.lookup(c, session, r.clock())
	return !has
}

func (r *relay) pushAll() {
	for cluster, batch := range r.unitBatches {
		r.pushUnits(cluster, batch)
	}
	for cluster, batch := range r.managerBatches {
		r.pushManagers(cluster, batch)
	}
	clear(r.unitBatches)
	clear(r.managerBatches)
	r.pending = false
	r.logJournalError(r.journal.flush(r.copies))
}

func (r *relay) pushUnits(c bus.Cluster, batch []byte) {
	if len(batch) > 0 {
		r.out.units(c, batch)
	}
}

func (r *relay) pushManagers(c bus.Cluster, batch []byte) {
	if len(batch) == 0 {
		return
	}
	if err := r.out.managers(c, batch); err != nil {
		r.log.Debug("pushing sealed sessions to other managers", "error", err) // other managers request the copies they miss
	}
}

// logJournalError logs a failed write to the journal, once until a write succeeds. The relay continues
// without the journal.
func (r *relay) logJournalError(err error) {
	if err != nil && !r.damaged {
		r.log.Warn("stored copies will not survive a restart", "error", err)
	}
	r.damaged = err != nil
}
