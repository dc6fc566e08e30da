package manager

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// registry knows the units that are heard. What a unit is stands in its
// certificate, its DNS names in the TLS leaf that the gateway is shown when it
// connects; a heartbeat adds where it listens and how busy it is.
type registry struct {
	limits  Limits
	dialer  dialer
	lineage *lineage
	naming  chan struct{}  // a value for each unit that is asked for its names
	tasks   sync.WaitGroup // of these
	ctx     context.Context
	end     context.CancelFunc

	mu      sync.RWMutex
	units   map[wire.UnitID]*member // guarded by mu
	changed chan struct{}           // guarded by mu: closed when a unit is new, ready again, or elsewhere
}

func newRegistry(l Limits, d dialer) *registry {
	r := &registry{
		limits: l, dialer: d, lineage: newLineage(), naming: make(chan struct{}, maxNaming),
		units: make(map[wire.UnitID]*member), changed: make(chan struct{}),
	}
	r.ctx, r.end = context.WithCancel(context.Background())
	return r
}

// source is who reports a unit.
type source bool

// A unit speaks for itself over its own connection, or another manager for it.
// The latter does not count while the former is heard.
const (
	itself    source = true
	elsewhere source = false
)

// heard takes a heartbeat in, and reports whether the unit is new. A unit may
// change its address once a second.
func (r *registry) heard(u bus.Unit, b bus.Beat, by source, now time.Time) bool {
	if b.Address == "" {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.units[u.ID]
	same := m != nil && m.unit.Cluster == u.Cluster && m.beat.Address == b.Address
	switch {
	case m == nil && !r.room(u.Cluster):
		return false
	case m != nil && by == elsewhere && m.by == itself && now.Sub(m.last) <= silence:
		return false
	case m != nil && !same && now.Sub(m.since) < settleEvery:
		return false
	}
	if !same {
		if m != nil {
			m.close()
		}
		fresh := newMember(u, now, r.limits.PerUnit)
		fresh.transport = r.dialer.transport(u.Cluster, b.Address, fresh.named)
		r.units[u.ID] = fresh
	}
	if same && m.beat.Ready && !b.Ready {
		m.close() // a unit that ends waits for connections on which nothing was sent yet
	}
	if !same || b.Ready && !m.beat.Ready {
		close(r.changed)
		r.changed = make(chan struct{})
	}
	found := r.units[u.ID]
	found.unit, found.beat, found.by, found.last = u, b, by, now
	r.askNames(found, now)
	return m == nil
}

// askNames connects to a unit whose names are not known yet, unless too many are
// asked now. The caller holds mu.
func (r *registry) askNames(m *member, now time.Time) {
	if m.names.Load() != nil || now.Before(m.nameAt) || r.ctx.Err() != nil {
		return
	}
	select {
	case r.naming <- struct{}{}:
	default:
		return // with a later heartbeat
	}
	m.nameWait = min(nameMost, max(nameAgain, 2*m.nameWait))
	m.nameAt = now.Add(m.nameWait)
	r.tasks.Go(func() {
		defer func() { <-r.naming }()
		if conn, err := m.transport.DialTLSContext(r.ctx, "tcp", ""); err == nil {
			conn.Close() // its handshake has told the names
		}
	})
}

// certified is the unit that is known by these certificates, DER.
func (r *registry) certified(id wire.UnitID, leaf, cross []byte) (bus.Unit, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	m := r.units[id]
	if m == nil || !bytes.Equal(m.unit.Leaf, leaf) || !bytes.Equal(m.unit.Cross, cross) {
		return bus.Unit{}, false
	}
	return m.unit, true
}

// room reports whether one more unit of a cluster may be known; the caller
// holds mu.
func (r *registry) room(c bus.Cluster) bool {
	if len(r.units) >= r.limits.Units {
		return false
	}
	clusters := map[bus.Cluster]bool{c: true}
	for _, m := range r.units {
		clusters[m.unit.Cluster] = true
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

// close forgets all units.
func (r *registry) close() {
	r.end()
	defer r.tasks.Wait()
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
	w.task = r.lineage.holder(w.clusters)
	w.clusters = nil
	return append(found, slices.DeleteFunc(r.among(w), func(m *member) bool { return slices.Contains(found, m) })...)
}

func (r *registry) among(w wanted) []*member {
	var all, named []*member
	if w.open() && severalTenants(r.units, w.host) {
		return nil // none is sent what another's user asks
	}
	for _, m := range r.units {
		switch {
		case w.clusters != nil && !slices.Contains(w.clusters, m.unit.Cluster),
			!w.identity.IsZero() && m.unit.Identity != w.identity,
			w.task != "" && !serves(m.unit.Holder(), w.task),
			w.sealedFor != nil && !holds(m.unit, w.sealedFor):
			continue
		}
		all = append(all, m)
		if m.hasName(w.host) {
			named = append(named, m)
		}
	}
	if len(named) > 0 {
		return named
	}
	return all
}

// serves reports whether what a unit serves is what is wanted.
func serves(holder, wanted string) bool {
	return holder == wanted || strings.HasSuffix(wanted, "/") && strings.HasPrefix(holder, wanted)
}

// holds reports whether a unit can hold a session: outside groups, all units of
// a cluster do.
func holds(u bus.Unit, sealedFor []wire.Digest) bool {
	return u.Group == "" || slices.Contains(sealedFor, u.Identity) || slices.Contains(sealedFor, wire.RoleID(u.Identity, u.Role))
}

// wait is find, but as long as a manager is warming up it waits for a unit that
// has not been heard yet.
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
