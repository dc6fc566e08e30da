package relay

import (
	"maps"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Successors records which clusters inherit the sessions of an earlier release. A unit's
// identity comes from its certificate. The identity that it inherits from is an unverified claim
// of the unit, which counts only if both identities have the same task, or the same role of the
// same group. So a unit receives no sealed sessions of other tenants, and of its own tenant's
// sessions it can open only those for which the authority issued it the ring keys.
type Successors struct {
	mu         sync.Mutex
	clusters   map[wire.Digest]bus.Cluster          // guarded by mu, by identity
	holders    map[bus.Cluster]string               // guarded by mu: task or GROUP/ROLE
	successors map[bus.Cluster]map[bus.Cluster]bool // guarded by mu: for each cluster, those that inherit from it
}

func NewSuccessors() *Successors {
	l := &Successors{}
	l.reset()
	return l
}

func (l *Successors) reset() {
	l.clusters, l.holders, l.successors = map[wire.Digest]bus.Cluster{}, map[bus.Cluster]string{}, map[bus.Cluster]map[bus.Cluster]bool{}
}

// Record records the identity of a verified unit, and the identity inherits that the unit claims
// to inherit from. If the claim counts, Record returns the cluster of that identity.
func (l *Successors) Record(u bus.Unit, inherits wire.Digest) (from bus.Cluster, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.clusters[u.Identity]; !known && len(l.clusters) >= 2*MaxClusters {
		l.reset() // removes ended releases; heartbeats add the running ones again
	}
	l.clusters[u.Identity], l.holders[u.Cluster] = u.Cluster, u.Holder()
	from, known := l.clusters[inherits]
	if inherits.IsZero() || !known || from == u.Cluster || l.holders[from] != u.Holder() {
		return bus.Cluster{}, false
	}
	if l.successors[from] == nil {
		l.successors[from] = map[bus.Cluster]bool{}
	}
	l.successors[from][u.Cluster] = true
	return from, true
}

// ClusterOf returns the cluster of an identity.
func (l *Successors) ClusterOf(identity wire.Digest) (c bus.Cluster, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, known = l.clusters[identity]
	return c, known
}

// SuccessorsOf returns the clusters that inherit from c.
func (l *Successors) SuccessorsOf(c bus.Cluster) []bus.Cluster {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.successors[c]))
}

// PredecessorsOf returns the clusters that c inherits from.
func (l *Successors) PredecessorsOf(c bus.Cluster) (list []bus.Cluster) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for parent, children := range l.successors {
		if children[c] {
			list = append(list, parent)
		}
	}
	return list
}

// HolderOf returns the holder (task or GROUP/ROLE) of the first known cluster of a list, or ""
// if none is known.
func (l *Successors) HolderOf(clusters []bus.Cluster) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range clusters {
		if holder := l.holders[c]; holder != "" {
			return holder
		}
	}
	return ""
}
