package manager

import (
	"maps"
	"slices"
	"sync"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/wire"
)

// lineage is what beats say of releases that follow one another. A unit that
// says it inherits from an identity is sent that one's sealed sessions: it can
// read those whose keys the authority handed to it, and no others.
type lineage struct {
	mu       sync.Mutex
	clusters map[wire.Digest]bus.Cluster          // guarded by mu, by identity
	tasks    map[bus.Cluster]string               // guarded by mu
	children map[bus.Cluster]map[bus.Cluster]bool // guarded by mu: heirs of a cluster
}

func newLineage() *lineage {
	l := &lineage{}
	l.reset()
	return l
}

func (l *lineage) reset() {
	l.clusters, l.tasks, l.children = map[wire.Digest]bus.Cluster{}, map[bus.Cluster]string{}, map[bus.Cluster]map[bus.Cluster]bool{}
}

// heard takes a beat in, and reports whether it is the first to say that its
// cluster inherits from a known one.
func (l *lineage) heard(c bus.Cluster, b bus.Beat) (begins bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.clusters) >= 2*maxClusters {
		l.reset() // of releases that are gone; those that are not beat again
	}
	l.clusters[b.Identity] = c
	l.tasks[c] = b.Task
	from, known := l.clusters[b.Inherits]
	if b.Inherits.IsZero() || !known || from == c || l.children[from][c] {
		return false
	}
	if l.children[from] == nil {
		l.children[from] = map[bus.Cluster]bool{}
	}
	l.children[from][c] = true
	return true
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

// task is that of the first of some clusters that is known; empty: of none.
func (l *lineage) task(clusters []bus.Cluster) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range clusters {
		if task := l.tasks[c]; task != "" {
			return task
		}
	}
	return ""
}
