package relay

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Relay distributes sealed sessions to all units of their cluster, in batches, and stores a copy
// of each. The goroutine of [Relay.Run] owns the batches and the journal. While the queue is
// full, each unit waits with one item only, so that no unit delays the others.
type Relay struct {
	copies     *Copies
	successors *Successors
	journal    *Journal
	clock      func() time.Time
	log        *slog.Logger
	queue      chan incoming
	ended      chan struct{}

	out            Sinks
	unitBatches    map[bus.Cluster][]byte // pending batches for units
	managerBatches map[bus.Cluster][]byte // pending batches for other managers
	pending        bool                   // whether an item arrived since the last push
	damaged        bool                   // whether the last write to the journal failed and the failure was logged
}

// Sinks are the functions that push batches.
type Sinks struct {
	Units    func(bus.Cluster, []byte)
	Managers func(bus.Cluster, []byte) error // nil if there are no other managers
}

// incoming is a received item.
type incoming struct {
	cluster     bus.Cluster
	item        bus.Item
	fromManager bool // received from another manager, which also sends it to all other managers
	fromStream  bool // read from the NATS stream: it is stored but not pushed
}

// New makes a relay, which starts with [Relay.Run]. The function clock returns the current time.
func New(c *Copies, l *Successors, j *Journal, clock func() time.Time, log *slog.Logger) *Relay {
	return &Relay{
		copies: c, successors: l, journal: j, clock: clock, log: log,
		queue: make(chan incoming, 1024), ended: make(chan struct{}), unitBatches: make(map[bus.Cluster][]byte), managerBatches: make(map[bus.Cluster][]byte),
	}
}

// AcceptFromUnit queues an item that a unit published. It blocks while the queue is full. With
// [wire.WrongIdentity] it refuses an item that is not sealed for the unit's own identity or
// role, and a session of which a different task or group has a copy.
func (r *Relay) AcceptFromUnit(u bus.Unit, item bus.Item) error {
	sealedFor, ok := sealedForItem(item)
	if !ok || sealedFor != u.Identity && (u.Group == "" || sealedFor != wire.RoleID(u.Identity, u.Role)) {
		return wire.Refuse(wire.WrongIdentity, "relay: identity that a session is sealed for", sealedFor, u.Identity)
	}
	if other := r.successors.HolderOf(r.copies.otherClustersWith(item.Session, u.Cluster)); other != "" && !SameTenant(other, u.Holder()) {
		return wire.Refuse(wire.WrongIdentity, "relay: holder of the session", u.Holder(), other)
	}
	r.enqueue(incoming{cluster: u.Cluster, item: item})
	return nil
}

// SameTenant reports whether two holders are the same task, or roles of the same group.
func SameTenant(a, b string) bool {
	groupA, _, inA := strings.Cut(a, "/")
	groupB, _, inB := strings.Cut(b, "/")
	return groupA == groupB && inA == inB
}

// AcceptFromManager queues an item that another manager pushed. It takes ownership of the item's
// bytes.
func (r *Relay) AcceptFromManager(c bus.Cluster, item bus.Item) {
	if _, ok := sealedForItem(item); ok {
		r.enqueue(incoming{cluster: c, item: item, fromManager: true})
	}
}

func (r *Relay) enqueue(a incoming) {
	select {
	case r.queue <- a:
	case <-r.ended:
	}
}

// Run relays items until ctx ends, and then pushes the pending batches. It pushes an item at
// once if BatchGap has passed since the last push; otherwise the item waits and shares a batch.
func (r *Relay) Run(ctx context.Context, out Sinks) {
	r.out = out
	defer close(r.ended)
	timer := time.NewTimer(BatchGap)
	timer.Stop()
	var last time.Time // time of the last push
	for {
		select {
		case a := <-r.queue:
			if !r.pending {
				timer.Reset(BatchGap - time.Since(last)) // fires at once if the gap has passed
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

// distribute stores an item, and appends it to the batches for its cluster, for the successors
// of the cluster and for the other managers.
func (r *Relay) distribute(a incoming) {
	r.pending = true
	if r.copies.Store(a.cluster, a.item, r.clock()) {
		r.logJournalError(r.journal.append(a.cluster, a.item))
	}
	if a.fromStream {
		return
	}
	for _, cluster := range append(r.successors.SuccessorsOf(a.cluster), a.cluster) {
		r.unitBatches[cluster] = r.appendToBatch(cluster, r.unitBatches[cluster], a.item, r.pushUnits)
	}
	if !a.fromManager && r.out.Managers != nil {
		r.managerBatches[a.cluster] = r.appendToBatch(a.cluster, r.managerBatches[a.cluster], a.item, r.pushManagers)
	}
}

// appendToBatch appends an item to a batch. It pushes the batch first if the item does not fit.
func (r *Relay) appendToBatch(c bus.Cluster, batch []byte, item bus.Item, push func(bus.Cluster, []byte)) []byte {
	if len(batch)+item.ByteSize() > bus.MaxBatch {
		push(c, batch)
		batch = batch[:0]
	}
	return item.Append(batch)
}

// ForwardSessions sends a unit the stored sessions of a predecessor, except those of which the
// unit's own cluster has a copy. It stops when push returns false.
func (r *Relay) ForwardSessions(from bus.Cluster, to bus.Unit, push func([]byte) bool) {
	var batch []byte
	for _, item := range r.copies.ofCluster(from) {
		if !r.isMissing(to.Cluster, item.Session) {
			continue
		}
		if len(batch)+item.ByteSize() > bus.MaxBatch {
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

// RestoreFromStream stores the items that read passes to its argument, for sessions without a
// stored copy. If a unit published an item of the session in the meantime, that newer item
// stays.
func (r *Relay) RestoreFromStream(read func(func(bus.Cluster, bus.Item)) error) (items int, err error) {
	missed := NewCopies(r.copies.maxBytes)
	err = read(func(c bus.Cluster, item bus.Item) {
		if r.isMissing(c, item.Session) {
			missed.Store(c, item, r.clock())
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

// isMissing reports whether cluster c has no stored copy of a session.
func (r *Relay) isMissing(c bus.Cluster, session wire.SessionID) bool {
	_, has := r.copies.Lookup(c, session, r.clock())
	return !has
}

func (r *Relay) pushAll() {
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

func (r *Relay) pushUnits(c bus.Cluster, batch []byte) {
	if len(batch) > 0 {
		r.out.Units(c, batch)
	}
}

func (r *Relay) pushManagers(c bus.Cluster, batch []byte) {
	if len(batch) == 0 {
		return
	}
	if err := r.out.Managers(c, batch); err != nil {
		r.log.Debug("pushing sealed sessions to other managers", "error", err) // managers request copies that they lack
	}
}

// logJournalError logs the first of consecutive failed writes to the journal. The relay
// continues without the journal.
func (r *Relay) logJournalError(err error) {
	if err != nil && !r.damaged {
		r.log.Warn("stored copies will not survive a restart", "error", err)
	}
	r.damaged = err != nil
}
