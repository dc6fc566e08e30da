package manager

import (
	"maps"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// lineage is which releases follow one another. That a unit is of an identity
// is known from its certificate, what it inherits from is its own word: it
// counts only for an identity of the same task, or of the same role of the same
// group. So a unit is sent sealed sessions of no other tenant; and of its own
// it can read those whose keys the authority gave it, and no others.
type lineage struct {
	mu       sync.Mutex
	clusters map[wire.Digest]bus.Cluster          // guarded by mu, by identity
	holders  map[bus.Cluster]string               // guarded by mu: task or GROUP/ROLE
	children map[bus.Cluster]map[bus.Cluster]bool // guarded by mu: heirs of a cluster
}

func newLineage() *lineage {
	l := &lineage{}
	l.reset()
	return l
}

func (l *lineage) reset() {
	l.clusters, l.holders, l.children = map[wire.Digest]bus.Cluster{}, map[bus.Cluster]string{}, map[bus.Cluster]map[bus.Cluster]bool{}
}

// heard takes in which identity a certified unit is of, and what it says it
// inherits from; from is the cluster of that, if it may.
func (l *lineage) heard(u bus.Unit, inherits wire.Digest) (from bus.Cluster, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.clusters[u.Identity]; !known && len(l.clusters) >= 2*maxClusters {
		l.reset() // of releases that are gone; those that are not are heard again
	}
	l.clusters[u.Identity], l.holders[u.Cluster] = u.Cluster, u.Holder()
	from, known := l.clusters[inherits]
	if inherits.IsZero() || !known || from == u.Cluster || l.holders[from] != u.Holder() {
		return bus.Cluster{}, false
	}
	if l.children[from] == nil {
		l.children[from] = map[bus.Cluster]bool{}
	}
	l.children[from][u.Cluster] = true
	return from, true
}

// cluster is that of an identity.
func (l *lineage) cluster(identity wire.Digest) (c bus.Cluster, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, known = l.clusters[identity]
	return c, known
}

// heirs are the clusters that inherit from one.
func (l *lineage) heirs(c bus.Cluster) []bus.Cluster {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.children[c]))
}

// parents are the clusters that one inherits from.
func (l *lineage) parents(c bus.Cluster) (list []bus.Cluster) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for parent, children := range l.children {
		if children[c] {
			list = append(list, parent)
		}
	}
	return list
}

// holder is the task, or GROUP/ROLE, of the first of some clusters that is
// known; empty: of none.
func (l *lineage) holder(clusters []bus.Cluster) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range clusters {
		if holder := l.holders[c]; holder != "" {
			return holder
		}
	}
	return ""
}
