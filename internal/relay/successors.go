package relay

import (
	"maps"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// Successors records which releases continue which. The identity of a unit comes from its
// certificate. The identity that it inherits from is the unit's own claim, and counts only for
// an identity of the same task, or of the same role of the same group. So a unit receives
// sealed sessions of no other tenant, and of its own tenant it can open only those whose keys
// the authority gave it.
type Successors struct {
	mu         sync.Mutex
	clusters   map[wire.Digest]bus.Cluster          // guarded by mu, by identity
	holders    map[bus.Cluster]string               // guarded by mu: task or GROUP/ROLE
	successors map[bus.Cluster]map[bus.Cluster]bool // guarded by mu: clusters that inherit from the key
}

func NewSuccessors() *Successors {
	l := &Successors{}
	l.reset()
	return l
}

func (l *Successors) reset() {
	l.clusters, l.holders, l.successors = map[wire.Digest]bus.Cluster{}, map[bus.Cluster]string{}, map[bus.Cluster]map[bus.Cluster]bool{}
}

// Record records the identity of a verified unit, and the identity that it claims to inherit
// from. It returns the cluster of the latter if the claim counts.
func (l *Successors) Record(u bus.Unit, inherits wire.Digest) (from bus.Cluster, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.clusters[u.Identity]; !known && len(l.clusters) >= 2*MaxClusters {
		l.reset() // drops ended releases; heartbeats add the others again
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

// HolderOf returns the task, or GROUP/ROLE, of the first known cluster of a list, empty if it
// knows none.
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
