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

// relay passes what units seal to all units of their cluster, in batches, and
// keeps a copy. One goroutine, in run, owns the batches and the journal. Of each
// unit one item waits at a time, so none takes another's turn.
type relay struct {
	copies  *copies
	lineage *lineage
	journal *journal
	clock   func() time.Time
	log     *slog.Logger
	arrived chan arrival
	ended   chan struct{}
	tasks   sync.WaitGroup // calls of bequeath

	out     outlets
	units   map[bus.Cluster][]byte // what waits to be pushed to units
	others  map[bus.Cluster][]byte // and to other managers
	waiting bool                   // something arrived since the last push
	damaged bool                   // the journal could not be written, and that was logged
}

// outlets are where batches go.
type outlets struct {
	units    func(bus.Cluster, []byte)
	managers func(bus.Cluster, []byte) error // nil: there are no others
}

// arrival is an item as it came in.
type arrival struct {
	cluster bus.Cluster
	item    bus.Item
	pushed  bool // by another manager, which gives it to others itself
	stored  bool // in NATS: it is only kept
}

func newRelay(c *copies, l *lineage, j *journal, config Config) *relay {
	return &relay{
		copies: c, lineage: l, journal: j, clock: config.Clock, log: config.Log,
		arrived: make(chan arrival, 1024), ended: make(chan struct{}), units: make(map[bus.Cluster][]byte), others: make(map[bus.Cluster][]byte),
	}
}

// take hands over an item of a unit; while the relay is behind it waits. It
// refuses with [wire.WrongIdentity] what is not sealed for the unit's own
// identity or role, and a session of another task or group.
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

// sameHolder reports whether two holders are one task, or of one group.
func sameHolder(a, b string) bool {
	groupA, _, inA := strings.Cut(a, "/")
	groupB, _, inB := strings.Cut(b, "/")
	return groupA == groupB && inA == inB
}

// keep hands over an item that another manager has pushed, whose bytes it owns.
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

// run relays until ctx ends, and then pushes what still waits. What arrives when
// nothing was pushed for a while is pushed at once; what arrives soon after waits
// for company.
func (r *relay) run(ctx context.Context, out outlets) {
	r.out = out
	defer close(r.ended)
	timer := time.NewTimer(batchGap)
	timer.Stop()
	var last time.Time // when was pushed
	for {
		select {
		case a := <-r.arrived:
			if !r.waiting {
				timer.Reset(batchGap - time.Since(last)) // at once where that is over
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

// add keeps an item, and adds it to the batches that it belongs to.
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

// batch adds an item to a batch, which is pushed before when it is full.
func (r *relay) batch(c bus.Cluster, batch []byte, item bus.Item, push func(bus.Cluster, []byte)) []byte {
	if len(batch)+item.Size() > bus.MaxBatch {
		push(c, batch)
		batch = batch[:0]
	}
	return item.Append(batch)
}

// bequeath pushes to a unit what is kept of a cluster that it inherits from,
// without what its own cluster has sealed for itself. It ends with the unit's
// connection.
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

// recall keeps what read gives of sessions that nothing is kept of. What came from
// the units meanwhile is newer.
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

// lacks reports whether nothing is kept of a session.
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
		r.log.Debug("pushing sealed sessions to other managers", "error", err) // they ask for them
	}
}

// tell logs that copies do not reach the disk, once: the relay goes on without.
func (r *relay) tell(err error) {
	if err != nil && !r.damaged {
		r.log.Warn("stored copies will not survive a restart", "error", err)
	}
	r.damaged = err != nil
}
