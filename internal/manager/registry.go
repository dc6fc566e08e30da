package manager

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/affinity"
	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/relay"
	"github.com/cohort-tee/cohort/internal/wire"
)

// registry contains the units that send heartbeats. A unit's certificate identifies it, its
// heartbeats contain its address and load, and the TLS leaf that it presents to the gateway
// contains its DNS names.
type registry struct {
	limits     Limits
	dialer     dialer
	successors *relay.Successors
	nameProbes chan struct{}  // one value for each open connection that reads DNS names
	tasks      sync.WaitGroup // open connections that read DNS names
	ctx        context.Context
	end        context.CancelFunc

	mu      sync.RWMutex
	units   map[wire.UnitID]*backend // guarded by mu
	changed chan struct{}            // guarded by mu: closed when a unit is added, becomes ready or changes its address
}

func newRegistry(l Limits, d dialer) *registry {
	r := &registry{
		limits: l, dialer: d, successors: relay.NewSuccessors(), nameProbes: make(chan struct{}, maxNaming),
		units: make(map[wire.UnitID]*backend), changed: make(chan struct{}),
	}
	r.ctx, r.end = context.WithCancel(context.Background())
	return r
}

// reporter is the source of a heartbeat.
type reporter bool

// A heartbeat arrives over the unit's own connection or is announced by another manager. An
// announcement is ignored while the unit's own connection sends heartbeats.
const (
	ownConnection reporter = true
	otherManager  reporter = false
)

// recordHeartbeat records a heartbeat, and reports whether the unit is new. It ignores an
// address change less than addressInterval after the last one.
func (r *registry) recordHeartbeat(u bus.Unit, b bus.Heartbeat, by reporter, now time.Time) bool {
	if b.Address == "" {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.units[u.ID]
	same := m != nil && m.unit.Cluster == u.Cluster && m.heartbeat.Address == b.Address
	switch {
	case m == nil && !r.hasRoom(u.Cluster):
		return false
	case m != nil && by == otherManager && m.reportedBy == ownConnection && now.Sub(m.lastSeen) <= silence:
		return false
	case m != nil && !same && now.Sub(m.addressSince) < addressInterval:
		return false
	}
	if !same {
		if m != nil {
			m.closeIdle()
		}
		fresh := newBackend(u, now, r.limits.PerUnit)
		fresh.transport = r.dialer.newTransport(u.Cluster, b.Address, fresh.setNames)
		r.units[u.ID] = fresh
	}
	if same && m.heartbeat.Ready && !b.Ready {
		m.closeIdle() // a unit that shuts down waits until idle connections are closed
	}
	if !same || b.Ready && !m.heartbeat.Ready {
		close(r.changed)
		r.changed = make(chan struct{})
	}
	found := r.units[u.ID]
	found.unit, found.heartbeat, found.reportedBy, found.lastSeen = u, b, by, now
	r.fetchNames(found, now)
	return m == nil
}

// fetchNames connects to a unit to read its DNS names, if they are unknown and fewer than
// maxNaming such connections are open. The caller holds mu.
func (r *registry) fetchNames(m *backend, now time.Time) {
	if m.names.Load() != nil || now.Before(m.nextNameProbe) || r.ctx.Err() != nil {
		return
	}
	select {
	case r.nameProbes <- struct{}{}:
	default:
		return // a later heartbeat tries again
	}
	m.nameBackoff = min(maxNameWait, max(minNameWait, 2*m.nameBackoff))
	m.nextNameProbe = now.Add(m.nameBackoff)
	r.tasks.Go(func() {
		defer func() { <-r.nameProbes }()
		if conn, err := m.transport.DialTLSContext(r.ctx, "tcp", ""); err == nil {
			conn.Close() // the handshake recorded the names
		}
	})
}

// unitByCertificates returns a recorded unit if its certificates are equal to leaf and cross
// (DER).
func (r *registry) unitByCertificates(id wire.UnitID, leaf, cross []byte) (bus.Unit, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	m := r.units[id]
	if m == nil || !bytes.Equal(m.unit.Leaf, leaf) || !bytes.Equal(m.unit.Cross, cross) {
		return bus.Unit{}, false
	}
	return m.unit, true
}

// hasRoom reports whether one more unit of cluster c is within the limits. The caller holds mu.
func (r *registry) hasRoom(c bus.Cluster) bool {
	if len(r.units) >= r.limits.Units {
		return false
	}
	clusters := map[bus.Cluster]bool{c: true}
	for _, m := range r.units {
		clusters[m.unit.Cluster] = true
	}
	return len(clusters) <= maxClusters
}

// dropSilent removes units without a recent heartbeat. Requests in progress at such a unit
// continue if a new connection to it succeeds. Otherwise dropSilent cancels them, since they
// would never end on a network that drops packets. It blocks until these connections succeed or
// fail.
func (r *registry) dropSilent(ctx context.Context, now time.Time) {
	var probes sync.WaitGroup
	defer probes.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, m := range r.units {
		if now.Sub(m.lastSeen) > silence {
			delete(r.units, id)
			m.closeIdle()
			probes.Go(func() { m.cancelIfUnreachable(ctx) })
		}
	}
}

// close removes all units.
func (r *registry) close() {
	r.end()
	defer r.tasks.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, m := range r.units {
		delete(r.units, id)
		m.closeIdle()
	}
}

// counts returns the number of units and the number of ready units.
func (r *registry) counts() (units, ready int) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	for _, m := range r.units {
		if m.heartbeat.Ready {
			ready++
		}
	}
	return len(r.units), ready
}

// unitFilter selects the units that can serve a request. Zero fields select all units.
type unitFilter struct {
	unit     wire.UnitID   // only this unit
	clusters []bus.Cluster // units of these clusters; if none is usable, units of their task
	identity wire.Digest   // units of this identity
	task     string        // units of this task or GROUP/ROLE; GROUP/ selects all roles of a group
	// sealedFor are the identities or roles for which the session is sealed, if known. In a
	// group, units of other roles cannot open it.
	sealedFor []wire.Digest
	host      string     // units with this DNS name, if any unit has it
	exclude   []*backend // units already tried
	affinity  affinity.Key
}

// selectUnit returns the unit that the filter names, ready or not. If the filter names no unit,
// selectUnit returns the first unit for the affinity key that is not loaded or, without a key,
// the matching ready unit with the fewest requests in progress. It prefers units that do not rest
// after a failure, and returns a resting unit only if all are resting. It returns nil if no unit
// matches.
func (r *registry) selectUnit(filter unitFilter, now time.Time) *backend {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if filter.unit != (wire.UnitID{}) {
		return r.units[filter.unit]
	}
	usable := slices.DeleteFunc(r.candidates(filter, now), func(m *backend) bool {
		return !m.heartbeat.Ready || slices.Contains(filter.exclude, m) || int(m.inFlight.Load()) >= r.limits.PerUnit
	})
	if first := sortByAffinity(filter.affinity, usable, now); len(first) > 0 {
		return first[0]
	}
	var best *backend
	var ties int
	for _, m := range usable {
		switch order := m.compare(best, now); {
		case order < 0:
			best, ties = m, 1
		case order == 0:
			if ties++; rand.N(ties) == 0 { // choose among equal units at random
				best = m
			}
		}
	}
	return best
}

// Load of a unit, in requests in progress from this gateway, above which an affinity key selects
// the next unit: minLoaded, and a quarter more than the mean of the units. It bounds what a key
// that many clients share, or a hostile one, concentrates on one unit.
const minLoaded = 8

// sortByAffinity returns the units that are neither loaded nor resting, the first one for the key
// first. Without a key it returns none. It leaves units as it is.
func sortByAffinity(key affinity.Key, units []*backend, now time.Time) []*backend {
	if key == "" {
		return nil
	}
	total := int64(0)
	for _, m := range units {
		total += m.inFlight.Load()
	}
	sorted := slices.DeleteFunc(slices.Clone(units), func(m *backend) bool {
		n := m.inFlight.Load()
		return m.restLeft(now) > 0 || n >= minLoaded && 4*n*int64(len(units)) >= 5*(total+1)
	})
	affinity.Sort(key, sorted, func(m *backend) wire.UnitID { return m.id })
	return sorted
}

// candidates returns the units that match w; if any of them have the requested host name, only
// those. If no unit of the clusters is usable, candidates adds the other units of their task,
// since a later release may have inherited the sessions. The caller holds mu.
func (r *registry) candidates(w unitFilter, now time.Time) []*backend {
	found := r.matching(w)
	left := func(m *backend) bool {
		return m.heartbeat.Ready && m.restLeft(now) == 0 && !slices.Contains(w.exclude, m)
	}
	if w.clusters == nil || slices.ContainsFunc(found, left) {
		return found
	}
	w.task = r.successors.HolderOf(w.clusters)
	w.clusters = nil
	return append(found, slices.DeleteFunc(r.matching(w), func(m *backend) bool { return slices.Contains(found, m) })...)
}

func (r *registry) matching(w unitFilter) []*backend {
	var all, named []*backend
	if w.isUnpinned() && hasSeveralTenants(r.units, w.host) {
		return nil // a tenant must not receive requests of another tenant's users
	}
	for _, m := range r.units {
		switch {
		case w.clusters != nil && !slices.Contains(w.clusters, m.unit.Cluster),
			!w.identity.IsZero() && m.unit.Identity != w.identity,
			w.task != "" && !servesHolder(m.unit.Holder(), w.task),
			w.sealedFor != nil && !canServeSession(m.unit, w.sealedFor):
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

// servesHolder reports whether a unit's holder (its task or GROUP/ROLE) is the wanted task, role
// or group.
func servesHolder(holder, wanted string) bool {
	return holder == wanted || strings.HasSuffix(wanted, "/") && strings.HasPrefix(holder, wanted)
}

// canServeSession reports whether a unit can open a session that is sealed for sealedFor.
// Outside groups, all units of a cluster can.
func canServeSession(u bus.Unit, sealedFor []wire.Digest) bool {
	return u.Group == "" || slices.Contains(sealedFor, u.Identity) || slices.Contains(sealedFor, wire.RoleID(u.Identity, u.Role))
}

// waitForUnit is like selectUnit, but until the time warm it waits for a matching unit to send
// its first heartbeat.
func (r *registry) waitForUnit(ctx context.Context, w unitFilter, now func() time.Time, warm time.Time) *backend {
	for {
		r.mu.RLock()
		changed := r.changed
		r.mu.RUnlock()
		m := r.selectUnit(w, now())
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

// alternatives returns the value of the Cohort-Units field: ids of at most unitsHinted ready
// units that match w, in the order of the affinity key and without loaded ones, or in random
// order without a key.
func (r *registry) alternatives(w unitFilter) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var ids []string
	now := r.dialer.clock()
	ready := slices.DeleteFunc(r.candidates(w, now), func(m *backend) bool { return !m.heartbeat.Ready || m.restLeft(now) > 0 })
	if w.affinity != "" {
		ready = sortByAffinity(w.affinity, ready, now)
	}
	for _, m := range ready[:min(len(ready), unitsHinted)] { // the iteration order of a map is random
		ids = append(ids, m.id.String())
	}
	return strings.Join(ids, ",")
}
