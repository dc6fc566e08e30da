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
	copies  *copies
	lineage *lineage
	journal *journal
	clock   func() time.Time
	log     *slog.Logger
	arrived chan arrival
	ended   chan struct{}
	tasks   sync.WaitGroup // running forwardSessions

	out     outlets
	units   map[bus.Cluster][]byte // pending batches for units
	others  map[bus.Cluster][]byte // pending batches for other managers
	waiting bool                   // an item arrived since the last push
	damaged bool                   // the last write to the journal failed, and that was logged
}

// outlets are the functions that push batches.
type outlets struct {
	units    func(bus.Cluster, []byte)
	managers func(bus.Cluster, []byte) error // nil without other managers
}

// arrival is a received item.
type arrival struct {
	cluster bus.Cluster
	item    bus.Item
	pushed  bool // received from another manager, which also sends it to the others
	stored  bool // read from the NATS stream; it is stored and not pushed
}

func newRelay(c *copies, l *lineage, j *journal, config Config) *relay {
	return &relay{
		copies: c, lineage: l, journal: j, clock: config.Clock, log: config.Log,
		arrived: make(chan arrival, 1024), ended: make(chan struct{}), units: make(map[bus.Cluster][]byte), others: make(map[bus.Cluster][]byte),
	}
}

// take queues an item that a unit published. It blocks while the queue is full. It refuses
// with [wire.WrongIdentity] an item that is not sealed for the unit's own identity or role,
// and a session of another task or group.
func (r *relay) take(u bus.Unit, item bus.Item) error {
	sealedFor, ok := sealedForOf(item)
	if !ok || sealedFor != u.Identity && (u.Group == "" || sealedFor != wire.RoleID(u.Identity, u.Role)) {
		return wire.Refuse(wire.WrongIdentity, "relay: identity that a session is sealed for", sealedFor, u.Identity)
	}
	if other := r.lineage.holder(r.copies.others(item.Session, u.Cluster)); other != "" && !sameHolder(other, u.Holder()) {
		return wire.Refuse(wire.WrongIdentity, "relay: holder of the session", u.Holder(), other)
	}
	r.hand(arrival{cluster: u.Cluster, item: item})
	return nil
}

// sameHolder reports whether two holders are the same task or roles of the same group.
func sameHolder(a, b string) bool {
	groupA, _, inA := strings.Cut(a, "/")
	groupB, _, inB := strings.Cut(b, "/")
	return groupA == groupB && inA == inB
}

// keep queues an item that another manager pushed. It takes ownership of the item's bytes.
func (r *relay) keep(c bus.Cluster, item bus.Item) {
	if _, ok := sealedForOf(item); ok {
		r.hand(arrival{cluster: c, item: item, pushed: true})
	}
}

func (r *relay) hand(a arrival) {
	select {
	case r.arrived <- a:
	case <-r.ended:
	}
}

// run relays until ctx ends, and then pushes the pending batches. An item that arrives more
// than batchGap after the last push is pushed at once; one that arrives earlier waits, to
// share a batch.
func (r *relay) run(ctx context.Context, out outlets) {
	r.out = out
	defer close(r.ended)
	timer := time.NewTimer(batchGap)
	timer.Stop()
	var last time.Time // time of the last push
	for {
		select {
		case a := <-r.arrived:
			if !r.waiting {
				timer.Reset(batchGap - time.Since(last)) // fires at once if the gap has passed
			}
			r.add(a)
		case <-timer.C:
			r.pushAll()
			last = time.Now()
		case <-ctx.Done():
			r.pushAll()
			return
		}
	}
}

// add stores an item, and appends it to the batches of its cluster, of the cluster's
// successors, and for other managers.
func (r *relay) add(a arrival) {
	r.waiting = true
	if r.copies.put(a.cluster, a.item, r.clock()) {
		r.tell(r.journal.add(a.cluster, a.item))
	}
	if a.stored {
		return
	}
	for _, cluster := range append(r.lineage.heirs(a.cluster), a.cluster) {
		r.units[cluster] = r.batch(cluster, r.units[cluster], a.item, r.pushUnits)
	}
	if !a.pushed && r.out.managers != nil {
		r.others[a.cluster] = r.batch(a.cluster, r.others[a.cluster], a.item, r.pushManagers)
	}
}

// batch appends an item to a batch. It pushes the batch first if the item does not fit.
func (r *relay) batch(c bus.Cluster, batch []byte, item bus.Item, push func(bus.Cluster, []byte)) []byte {
	if len(batch)+item.Size() > bus.MaxBatch {
		push(c, batch)
		batch = batch[:0]
	}
	return item.Append(batch)
}

// bequeath sends a unit the stored sessions of a predecessor, without those that the unit's
// own cluster has sealed again. It stops when the unit's connection ends.
func (r *relay) bequeath(from bus.Cluster, to bus.Unit, push func([]byte) bool) {
	var batch []byte
	for _, item := range r.copies.of(from) {
		if !r.lacks(to.Cluster, item.Session) {
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

// recall stores the items that read returns for sessions without a stored copy. An item that a
// unit published in the meantime is newer and stays.
func (r *relay) recall(read func(func(bus.Cluster, bus.Item)) error) (items int, err error) {
	missed := newCopies(r.copies.most)
	err = read(func(c bus.Cluster, item bus.Item) {
		if r.lacks(c, item.Session) {
			missed.put(c, item, r.clock())
		}
	})
	return items, errors.Join(err, missed.all(func(c bus.Cluster, item bus.Item) error {
		if r.lacks(c, item.Session) {
			items++
			r.hand(arrival{cluster: c, item: item, stored: true})
		}
		return nil
	}))
}

// lacks reports whether there is no stored copy of a session.
func (r *relay) lacks(c bus.Cluster, session wire.SessionID) bool {
	_, has := r.copies.get(c, session, r.clock())
	return !has
}

func (r *relay) pushAll() {
	for cluster, batch := range r.units {
		r.pushUnits(cluster, batch)
	}
	for cluster, batch := range r.others {
		r.pushManagers(cluster, batch)
	}
	clear(r.units)
	clear(r.others)
	r.waiting = false
	r.tell(r.journal.flush(r.copies))
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

// tell logs a failed write to the journal, once until a write succeeds. The relay continues
// without the journal.
func (r *relay) tell(err error) {
	if err != nil && !r.damaged {
		r.log.Warn("stored copies will not survive a restart", "error", err)
	}
	r.damaged = err != nil
}
