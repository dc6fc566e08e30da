package manager

import (
	"bytes"
	"container/heap"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cohort-tee/cohort/internal/bus"
	"github.com/cohort-tee/cohort/internal/envelope"
	"github.com/cohort-tee/cohort/internal/wire"
)

// copies stores the sealed sessions of the clusters in memory until they expire, the newest
// item of each session. A tombstone replaces its session permanently. When a cluster exceeds
// its share, the items that expire first are removed: their clients still have tickets.
type copies struct {
	most int // bytes of one cluster

	mu       sync.RWMutex
	clusters map[bus.Cluster]*shelf // guarded by mu
}

// shelf is the stored copies of one cluster.
type shelf struct {
	sessions map[wire.SessionID]*kept
	ends     ends
	bytes    int
}

// kept is one stored item.
type kept struct {
	bus.Item
	place int // in byExpiry
}

func newCopies(most int) *copies {
	return &copies{most: most, clusters: make(map[bus.Cluster]*shelf)}
}

// put stores an item, whose bytes it copies, and reports whether it did.
func (c *copies) put(cluster bus.Cluster, item bus.Item, now time.Time) bool {
	unix := uint64(now.Unix())
	if item.Expiry <= unix || item.Expiry > unix+uint64(copyLife/time.Second) {
		return false
	}
	item.Bytes = bytes.Clone(item.Bytes)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.clusters[cluster]
	if s == nil {
		if len(c.clusters) >= maxClusters {
			return false
		}
		s = &shelf{sessions: make(map[wire.SessionID]*kept)}
		c.clusters[cluster] = s
	}
	if old := s.sessions[item.Session]; old != nil {
		if old.Kind == bus.Tombstone {
			return false
		}
		s.remove(old)
	}
	for len(s.ends) > 0 && s.bytes+item.Size() > c.most {
		s.remove(s.ends[0])
	}
	s.add(item)
	return true
}

// get returns the stored item of a session. Its bytes are never written to.
func (c *copies) get(cluster bus.Cluster, session wire.SessionID, now time.Time) (bus.Item, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s := c.clusters[cluster]
	if s == nil {
		return bus.Item{}, false
	}
	k := s.sessions[session]
	if k == nil || k.Expiry <= uint64(now.Unix()) {
		return bus.Item{}, false
	}
	return k.Item, true
}

// of lists the stored items of a cluster.
func (c *copies) of(cluster bus.Cluster) []bus.Item {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s := c.clusters[cluster]
	if s == nil {
		return nil
	}
	items := make([]bus.Item, len(s.ends))
	for i, k := range s.ends {
		items[i] = k.Item
	}
	return items
}

// holders returns the clusters with a copy of a session: more than one if a later release has
// sealed it again.
func (c *copies) holders(session wire.SessionID) []bus.Cluster {
	return c.others(session, bus.Cluster{})
}

// others returns the clusters with a copy of a session, except one.
func (c *copies) others(session wire.SessionID, but bus.Cluster) []bus.Cluster {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var found []bus.Cluster
	for cluster, s := range c.clusters {
		if cluster != but && s.sessions[session] != nil {
			found = append(found, cluster)
		}
	}
	return found
}

// sealedFor returns the identities or roles that a session is sealed for, according to its
// unauthenticated items.
func (c *copies) sealedFor(session wire.SessionID) (found []wire.Digest) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, s := range c.clusters {
		if k := s.sessions[session]; k != nil {
			sealedFor, _ := sealedForOf(k.Item)
			found = append(found, sealedFor)
		}
	}
	return found
}

// sealedKind returns the kind of sealed message in an item.
func sealedKind(i bus.Item) envelope.Kind {
	if i.Kind == bus.Tombstone {
		return envelope.Tombstone
	}
	return envelope.Session
}

// sealedForOf returns the identity or role that an item is sealed for. ok is false if the
// sealed bytes are malformed, or name another session or expiry than the item.
func sealedForOf(i bus.Item) (d wire.Digest, ok bool) {
	s, err := envelope.ParseSealed(sealedKind(i), i.Bytes)
	return s.For, err == nil && s.Session == i.Session && s.Expiry == i.Expiry
}

// prune removes expired items.
func (c *copies) prune(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for cluster, s := range c.clusters {
		for len(s.ends) > 0 && s.ends[0].Expiry <= uint64(now.Unix()) {
			s.remove(s.ends[0])
		}
		if len(s.ends) == 0 {
			delete(c.clusters, cluster)
		}
	}
}

// size returns the number of stored items, and their bytes.
func (c *copies) size() (items, bytes int) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, s := range c.clusters {
		items += len(s.sessions)
		bytes += s.bytes
	}
	return items, bytes
}

// all calls f with every stored item. It does not hold the lock during the calls.
func (c *copies) all(f func(bus.Cluster, bus.Item) error) error {
	c.mu.RLock()
	clusters := slices.Collect(maps.Keys(c.clusters))
	c.mu.RUnlock()
	for _, cluster := range clusters {
		for _, item := range c.of(cluster) {
			if err := f(cluster, item); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *shelf) add(item bus.Item) {
	k := &kept{Item: item}
	heap.Push(&s.ends, k)
	s.sessions[item.Session] = k
	s.bytes += item.Size()
}

func (s *shelf) remove(k *kept) {
	heap.Remove(&s.ends, k.place)
	delete(s.sessions, k.Session)
	s.bytes -= k.Size()
}

// ends is a heap of items, the earliest expiry first.
type ends []*kept

func (e ends) Len() int           { return len(e) }
func (e ends) Less(i, j int) bool { return e[i].Expiry < e[j].Expiry }
func (e ends) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].place, e[j].place = i, j
}

// Push and Pop implement heap.Interface.
func (e *ends) Push(x any) {
	k := x.(*kept)
	k.place = len(*e)
	*e = append(*e, k)
}

func (e *ends) Pop() any {
	last := len(*e) - 1
	k := (*e)[last]
	(*e)[last] = nil
	*e = (*e)[:last]
	return k
}
