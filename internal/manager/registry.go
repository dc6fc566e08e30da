package manager

import (
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// registry knows the units that beat. That a unit is of its cluster is known
// from the bus; everything in a beat is the unit's own word, and the names in
// it are held against its TLS leaf when the gateway connects.
type registry struct {
	limits  Limits
	dialer  dialer
	lineage *lineage

	mu      sync.RWMutex
	units   map[wire.UnitID]*member // guarded by mu
	changed chan struct{}           // guarded by mu: closed when a unit is new, ready again, or elsewhere
}

func newRegistry(l Limits, d dialer) *registry {
	return &registry{limits: l, dialer: d, lineage: newLineage(), units: make(map[wire.UnitID]*member), changed: make(chan struct{})}
}

// heard takes a beat in, and says whether the unit is new.
func (r *registry) heard(c bus.Cluster, id wire.UnitID, b bus.Beat, now time.Time) bool {
	if !beatOK(b) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.units[id]
	same := m != nil && m.cluster == c && m.beat.Address == b.Address && slices.Equal(m.beat.Names, b.Names)
	if m == nil && !r.room(c) {
		return false
	}
	if !same {
		if m != nil {
			m.close()
		}
		r.units[id] = newMember(id, c, r.dialer.transport(c, b))
	}
	if same && m.beat.Ready && !b.Ready {
		m.close() // a unit that ends waits for connections on which nothing was sent yet
	}
	if !same || b.Ready && !m.beat.Ready {
		close(r.changed)
		r.changed = make(chan struct{})
	}
	r.units[id].beat, r.units[id].last = b, now
	return m == nil
}

// beatOK bounds what is kept of a beat.
func beatOK(b bus.Beat) bool {
	_, _, err := net.SplitHostPort(b.Address)
	long := func(name string) bool { return len(name) > maxName }
	return err == nil && !long(b.Address) && len(b.Names) <= maxNames && !slices.ContainsFunc(b.Names, long)
}

// room reports whether one more unit of a cluster may be known; the caller
// holds mu.
func (r *registry) room(c bus.Cluster) bool {
	if len(r.units) >= r.limits.Units {
		return false
	}
	clusters := map[bus.Cluster]bool{c: true}
	for _, m := range r.units {
		clusters[m.cluster] = true
	}
	return len(clusters) <= maxClusters
}

// forget drops units that are silent. Requests under way at one go on while it
// can be reached; without that nobody would ever end them, when a network
// swallows what is sent. It blocks until that is known.
func (r *registry) forget(ctx context.Context, now time.Time) {
	var probes sync.WaitGroup
	defer probes.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, m := range r.units {
		if now.Sub(m.last) > silence {
			delete(r.units, id)
			m.close()
			probes.Go(func() { m.probe(ctx) })
		}
	}
}

// close forgets everybody.
func (r *registry) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, m := range r.units {
		delete(r.units, id)
		m.close()
	}
}

// size is how many units are known, and how many of them are ready.
func (r *registry) size() (units, ready int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, m := range r.units {
		if m.beat.Ready {
			ready++
		}
	}
	return len(r.units), ready
}

// wanted says which units can serve a request.
type wanted struct {
	target   wire.UnitID   // exactly this one; zero: any
	clusters []bus.Cluster // where given, of one of these, or else of their tasks
	identity wire.Digest   // where given, of this one
	task     string        // where given, of this one; GROUP/ for all roles of a group
	// sealedFor are the identities or roles that hold the session, where that
	// is known; units of other roles in their groups do not.
	sealedFor []wire.Digest
	host      string    // and of this name, when any unit has it
	tried     []*member // not again
}

// find gives the ready unit that has the fewest requests under way and is not
// resting after a failure. When all are resting it gives one all the same: the
// last is never ejected. It is nil when there is none.
func (r *registry) find(w wanted, now time.Time) *member {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if w.target != (wire.UnitID{}) {
		return r.units[w.target]
	}
	var best *member
	var ties int
	for _, m := range r.candidates(w, now) {
		if !m.beat.Ready || slices.Contains(w.tried, m) || int(m.inFlight.Load()) >= r.limits.PerUnit {
			continue
		}
		switch order := m.compare(best, now); {
		case order < 0:
			best, ties = m, 1
		case order == 0:
			if ties++; rand.N(ties) == 0 { // each of the equals is as likely
				best = m
			}
		}
	}
	return best
}

// candidates are the units of the wanted identity, task or clusters; of these
// the ones that have the host's name, or all when none has. Where no unit of the
// clusters is left that may well answer, another release may have inherited
// their sessions. The caller holds mu.
func (r *registry) candidates(w wanted, now time.Time) []*member {
	found := r.among(w)
	left := func(m *member) bool { return m.beat.Ready && m.rest(now) == 0 && !slices.Contains(w.tried, m) }
	if w.clusters == nil || slices.ContainsFunc(found, left) {
		return found
	}
	w.task = r.lineage.task(w.clusters)
	w.clusters = nil
	return append(found, slices.DeleteFunc(r.among(w), func(m *member) bool { return slices.Contains(found, m) })...)
}

func (r *registry) among(w wanted) []*member {
	var all, named []*member
	for _, m := range r.units {
		switch {
		case w.clusters != nil && !slices.Contains(w.clusters, m.cluster),
			!w.identity.IsZero() && m.beat.Identity != w.identity,
			w.task != "" && !serves(m.beat.Task, w.task),
			w.sealedFor != nil && !holds(m.beat, w.sealedFor):
			continue
		}
		all = append(all, m)
		if slices.Contains(m.beat.Names, w.host) {
			named = append(named, m)
		}
	}
	if len(named) > 0 {
		return named
	}
	return all
}

// serves reports whether what a unit beats for is what is wanted.
func serves(beat, wanted string) bool {
	return beat == wanted || strings.HasSuffix(wanted, "/") && strings.HasPrefix(beat, wanted)
}

// holds reports whether a unit can hold a session: outside groups, all units of
// a cluster do.
func holds(b bus.Beat, sealedFor []wire.Digest) bool {
	_, role, inGroup := strings.Cut(b.Task, "/")
	return !inGroup || slices.Contains(sealedFor, b.Identity) || slices.Contains(sealedFor, wire.RoleID(b.Identity, role))
}

// wait is find, but as long as a manager is warming up it waits for a unit that
// has not beaten yet.
func (r *registry) wait(ctx context.Context, w wanted, now func() time.Time, warm time.Time) *member {
	for {
		r.mu.RLock()
		changed := r.changed
		r.mu.RUnlock()
		m := r.find(w, now())
		left := warm.Sub(now())
		if m != nil || left <= 0 {
			return m
		}
		timer := time.NewTimer(left)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
			left = 0
		}
		timer.Stop()
		if left == 0 {
			return nil
		}
	}
}

// hint is the value of the Cohort-Units field: some ready units that serve what
// is wanted, in random order.
func (r *registry) hint(w wanted) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var ids []string
	now := r.dialer.clock()
	for _, m := range r.candidates(w, now) { // a map's order begins at random
		if m.beat.Ready && m.rest(now) == 0 && len(ids) < unitsHinted {
			ids = append(ids, m.id.String())
		}
	}
	return strings.Join(ids, ",")
}
