package relay

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

// Copies stores the newest item of each session in memory, by cluster, until it expires. A
// tombstone replaces its session permanently. When a cluster exceeds its limit, Copies removes
// the items that expire first: their clients still have tickets.
type Copies struct {
	maxBytes int // maximum for one cluster

	mu       sync.RWMutex
	clusters map[bus.Cluster]*clusterCopies // guarded by mu
}

// clusterCopies has the stored copies of one cluster.
type clusterCopies struct {
	sessions map[wire.SessionID]*storedCopy
	byExpiry expiryHeap
	bytes    int
}

// storedCopy is one stored item.
type storedCopy struct {
	bus.Item
	index int // index in byExpiry
}

func NewCopies(most int) *Copies {
	return &Copies{maxBytes: most, clusters: make(map[bus.Cluster]*clusterCopies)}
}

// Store stores a copy of an item, and reports whether it did. It does not store an item that has
// expired, expires later than [CopyLifetime] from now, or follows the session's tombstone.
func (c *Copies) Store(cluster bus.Cluster, item bus.Item, now time.Time) bool {
	unix := uint64(now.Unix())
	if item.Expiry <= unix || item.Expiry > unix+uint64(CopyLifetime/time.Second) {
		return false
	}
	item.Bytes = bytes.Clone(item.Bytes)
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.clusters[cluster]
	if s == nil {
		if len(c.clusters) >= MaxClusters {
			return false
		}
		s = &clusterCopies{sessions: make(map[wire.SessionID]*storedCopy)}
		c.clusters[cluster] = s
	}
	if old := s.sessions[item.Session]; old != nil {
		if old.Kind == bus.Tombstone {
			return false
		}
		s.remove(old)
	}
	for len(s.byExpiry) > 0 && s.bytes+item.ByteSize() > c.maxBytes {
		s.remove(s.byExpiry[0])
	}
	s.insert(item)
	return true
}

// Lookup returns the stored item of a session. The caller must not modify its bytes.
func (c *Copies) Lookup(cluster bus.Cluster, session wire.SessionID, now time.Time) (bus.Item, bool) {
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

// ofCluster returns the stored items of a cluster.
func (c *Copies) ofCluster(cluster bus.Cluster) []bus.Item {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s := c.clusters[cluster]
	if s == nil {
		return nil
	}
	items := make([]bus.Item, len(s.byExpiry))
	for i, k := range s.byExpiry {
		items[i] = k.Item
	}
	return items
}

// ClustersWith returns the clusters that have a copy of a session: more than one if a later
// release sealed it again.
func (c *Copies) ClustersWith(session wire.SessionID) []bus.Cluster {
	return c.otherClustersWith(session, bus.Cluster{})
}

// otherClustersWith returns the clusters that have a copy of a session, except the cluster but.
func (c *Copies) otherClustersWith(session wire.SessionID, but bus.Cluster) []bus.Cluster {
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

// SealedFor returns the identities or roles for which a session is sealed, according to the
// unauthenticated headers of its items.
func (c *Copies) SealedFor(session wire.SessionID) (found []wire.Digest) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, s := range c.clusters {
		if k := s.sessions[session]; k != nil {
			sealedFor, _ := sealedForItem(k.Item)
			found = append(found, sealedFor)
		}
	}
	return found
}

// sealedKind returns the kind of the sealed bytes of an item.
func sealedKind(i bus.Item) envelope.Kind {
	if i.Kind == bus.Tombstone {
		return envelope.Tombstone
	}
	return envelope.Session
}

// sealedForItem returns the identity or role for which an item is sealed. ok is false if the
// sealed bytes are malformed, or their session or expiry differs from that of the item.
func sealedForItem(i bus.Item) (d wire.Digest, ok bool) {
	s, err := envelope.ParseSealed(sealedKind(i), i.Bytes)
	return s.For, err == nil && s.Session == i.Session && s.Expiry == i.Expiry
}

// RemoveExpired removes expired items.
func (c *Copies) RemoveExpired(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for cluster, s := range c.clusters {
		for len(s.byExpiry) > 0 && s.byExpiry[0].Expiry <= uint64(now.Unix()) {
			s.remove(s.byExpiry[0])
		}
		if len(s.byExpiry) == 0 {
			delete(c.clusters, cluster)
		}
	}
}

// Totals returns the number of stored items and their size in bytes.
func (c *Copies) Totals() (items, bytes int) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, s := range c.clusters {
		items += len(s.sessions)
		bytes += s.bytes
	}
	return items, bytes
}

// forEach calls f with every stored item. It does not hold the lock during the calls.
func (c *Copies) forEach(f func(bus.Cluster, bus.Item) error) error {
	c.mu.RLock()
	clusters := slices.Collect(maps.Keys(c.clusters))
	c.mu.RUnlock()
	for _, cluster := range clusters {
		for _, item := range c.ofCluster(cluster) {
			if err := f(cluster, item); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *clusterCopies) insert(item bus.Item) {
	k := &storedCopy{Item: item}
	heap.Push(&s.byExpiry, k)
	s.sessions[item.Session] = k
	s.bytes += item.ByteSize()
}

func (s *clusterCopies) remove(k *storedCopy) {
	heap.Remove(&s.byExpiry, k.index)
	delete(s.sessions, k.Session)
	s.bytes -= k.ByteSize()
}

// expiryHeap is a heap of items with the earliest expiry at the top.
type expiryHeap []*storedCopy

func (e expiryHeap) Len() int           { return len(e) }
func (e expiryHeap) Less(i, j int) bool { return e[i].Expiry < e[j].Expiry }
func (e expiryHeap) Swap(i, j int) {
	e[i], e[j] = e[j], e[i]
	e[i].index, e[j].index = i, j
}

// Push and Pop implement heap.Interface.
func (e *expiryHeap) Push(x any) {
	k := x.(*storedCopy)
	k.index = len(*e)
	*e = append(*e, k)
}

func (e *expiryHeap) Pop() any {
	last := len(*e) - 1
	k := (*e)[last]
	(*e)[last] = nil
	*e = (*e)[:last]
	return k
}
