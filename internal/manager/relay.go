package manager

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// relay passes what units seal to all units of their cluster, in batches, and
// keeps a copy. One goroutine, in run, owns the batches and the journal.
type relay struct {
	copies  *copies
	lineage *lineage
	journal *journal
	clock   func() time.Time
	log     *slog.Logger
	arrived chan arrival
	ended   chan struct{}
	tasks   sync.WaitGroup // calls of bequeath

	batches map[bus.Cluster][]byte // what waits to be pushed
	damaged bool                   // the journal could not be written, and that was told
}

// arrival is an item as it came in.
type arrival struct {
	cluster bus.Cluster
	item    bus.Item
	pushed  bool // by another manager, to all units: it is only kept
	kept    bool // of a release before: it is only pushed
}

func newRelay(c *copies, l *lineage, j *journal, config Config) *relay {
	return &relay{
		copies: c, lineage: l, journal: j, clock: config.Clock, log: config.Log,
		arrived: make(chan arrival, 1024), ended: make(chan struct{}), batches: make(map[bus.Cluster][]byte),
	}
}

// take hands an item over; while the relay is behind it waits.
func (r *relay) take(c bus.Cluster, item bus.Item) { r.hand(arrival{cluster: c, item: item}) }

// keep hands over an item that another manager has pushed.
func (r *relay) keep(c bus.Cluster, item bus.Item) {
	r.hand(arrival{cluster: c, item: item, pushed: true})
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
func (r *relay) run(ctx context.Context, push func(bus.Cluster, []byte) error) {
	defer close(r.ended)
	timer := time.NewTimer(batchGap)
	timer.Stop()
	var last time.Time // when was pushed
	for {
		select {
		case a := <-r.arrived:
			if len(r.batches) == 0 {
				timer.Reset(batchGap - time.Since(last)) // at once where that is over
			}
			r.add(a, push)
		case <-timer.C:
			r.pushAll(push)
			last = time.Now()
		case <-ctx.Done():
			r.pushAll(push)
			return
		}
	}
}

// add keeps an item, and pushes its batch when that is full.
func (r *relay) add(a arrival, push func(bus.Cluster, []byte) error) {
	if !a.kept && r.copies.put(a.cluster, a.item, r.clock()) {
		r.tell(r.journal.add(a.cluster, a.item))
	}
	if a.pushed {
		r.batches[a.cluster] = append(r.batches[a.cluster], nil...) // so that the journal is flushed
		return
	}
	for _, cluster := range append(r.lineage.heirs(a.cluster), a.cluster) {
		batch := r.batches[cluster]
		if len(batch)+a.item.Size() > batchSize {
			r.push(cluster, batch, push)
			batch = batch[:0]
		}
		r.batches[cluster] = a.item.Append(batch)
	}
}

// bequeath pushes what is kept of a cluster, and not of another that says it
// inherits it, to the units of that.
func (r *relay) bequeath(from, to bus.Cluster) {
	for _, item := range r.copies.of(from) {
		if r.lacks(to, item.Session) {
			r.hand(arrival{cluster: to, item: item, kept: true})
		}
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
			r.keep(c, item)
		}
		return nil
	}))
}

// lacks reports whether nothing is kept of a session.
func (r *relay) lacks(c bus.Cluster, session wire.SessionID) bool {
	_, has := r.copies.get(c, session, r.clock())
	return !has
}

func (r *relay) pushAll(push func(bus.Cluster, []byte) error) {
	for cluster, batch := range r.batches {
		r.push(cluster, batch, push)
	}
	clear(r.batches)
	r.tell(r.journal.flush(r.copies))
}

func (r *relay) push(c bus.Cluster, batch []byte, push func(bus.Cluster, []byte) error) {
	if len(batch) == 0 {
		return
	}
	if err := push(c, batch); err != nil {
		r.log.Debug("pushing sealed sessions", "error", err) // units pull them
	}
}

// tell logs that copies do not reach the disk, once: the relay goes on without.
func (r *relay) tell(err error) {
	if err != nil && !r.damaged {
		r.log.Warn("stored copies will not survive a restart", "error", err)
	}
	r.damaged = err != nil
}
