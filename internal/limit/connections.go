package limit

import (
	"container/heap"
	"container/list"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Connections bounds the open connections of a server. When the bound is exceeded, the address
// with the most connections without a running request loses the one of them that has waited
// longest. So half-open connections cannot keep honest clients out, nor exhaust memory, and a
// flood from some addresses closes its own connections. It is safe for concurrent use.
type Connections struct {
	most    int
	crowded atomic.Int64

	mu       sync.Mutex
	excluded int                            // guarded by mu: open connections that another quota bounds
	open     map[net.Conn]*connection       // guarded by mu
	waiting  map[netip.Addr]*waitingAddress // guarded by mu: of the addresses below
	crowds   waitingHeap                    // guarded by mu: addresses with any that waits
}

// connection is an open connection.
type connection struct {
	from  netip.Addr
	place *list.Element // among the waiting connections of its address; nil while a request is running
}

// NewConnections bounds them to most, which is at least 1.
func NewConnections(most int) *Connections {
	return &Connections{most: most, open: make(map[net.Conn]*connection), waiting: make(map[netip.Addr]*waitingAddress)}
}

// Track is the ConnState of an http.Server.
func (c *Connections) Track(conn net.Conn, state http.ConnState) {
	if crowded := c.recordState(conn, state); crowded != nil {
		c.crowded.Add(1)
		rawConn(crowded).Close()
	}
}

// Crowded is how many were closed because there was one too many.
func (c *Connections) Crowded() int64 { return c.crowded.Load() }

// Exclude takes one connection that is at work out of the count until back is called, which
// is once: another quota bounds how many there are of those.
func (c *Connections) Exclude() (back func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.excluded++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.excluded--
	}
}

// recordState records the new state and returns the connection to be closed, or nil. It counts
// the returned connection as closed at once; that connection's own goroutine reports it later.
func (c *Connections) recordState(conn net.Conn, state http.ConnState) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.open[conn]
	if k == nil {
		if state != http.StateNew {
			return nil
		}
		k = &connection{from: AddressOf(conn.RemoteAddr().String())}
		c.open[conn] = k
	}
	c.removeWaiting(k)
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
	case http.StateActive:
	default:
		c.addWaiting(k, conn)
	}
	if len(c.open)-c.excluded <= c.most || len(c.crowds) == 0 {
		return nil
	}
	crowded := c.crowds[0].waiting.Front().Value.(net.Conn)
	c.removeWaiting(c.open[crowded])
	delete(c.open, crowded)
	return crowded
}

// addWaiting puts a connection behind the others of its address that wait. The caller
// holds mu.
func (c *Connections) addWaiting(k *connection, conn net.Conn) {
	a := c.waiting[k.from]
	if a == nil {
		a = &waitingAddress{from: k.from, waiting: list.New()}
		c.waiting[k.from] = a
		heap.Push(&c.crowds, a)
	}
	k.place = a.waiting.PushBack(conn)
	heap.Fix(&c.crowds, a.index)
}

// removeWaiting removes a connection from the waiting ones. The caller holds mu.
func (c *Connections) removeWaiting(k *connection) {
	if k.place == nil {
		return
	}
	a := c.waiting[k.from]
	a.waiting.Remove(k.place)
	k.place = nil
	if a.waiting.Len() == 0 {
		heap.Remove(&c.crowds, a.index)
		delete(c.waiting, k.from)
		return
	}
	heap.Fix(&c.crowds, a.index)
}

// waitingAddress is an address with its connections that wait, the longest first.
type waitingAddress struct {
	from    netip.Addr
	waiting *list.List // of net.Conn; never empty in a heap at rest
	index   int        // in the heap
}

// waitingHeap is a heap, the address with the most waiting connections first.
type waitingHeap []*waitingAddress

func (c waitingHeap) Len() int           { return len(c) }
func (c waitingHeap) Less(i, j int) bool { return c[i].waiting.Len() > c[j].waiting.Len() }
func (c waitingHeap) Swap(i, j int) {
	c[i], c[j] = c[j], c[i]
	c[i].index, c[j].index = i, j
}

// Push and Pop are for container/heap alone.
func (c *waitingHeap) Push(x any) {
	a := x.(*waitingAddress)
	a.index = len(*c)
	*c = append(*c, a)
}

func (c *waitingHeap) Pop() any {
	last := len(*c) - 1
	a := (*c)[last]
	(*c)[last] = nil
	*c = (*c)[:last]
	return a
}

// rawConn is the connection below TLS: closing it never waits for the peer.
func rawConn(c net.Conn) net.Conn {
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok {
		return outer.NetConn()
	}
	return c
}
