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

// Connections limits the open connections of a server. A connection waits while no request runs
// on it. When the limit is exceeded, Connections chooses the address with the most waiting
// connections and closes the longest-waiting one. So half-open connections can neither keep
// honest clients out nor exhaust memory, and a flood from some addresses closes only connections
// of these addresses. It is safe for concurrent use.
type Connections struct {
	most    int
	crowded atomic.Int64

	mu       sync.Mutex
	excluded int                            // guarded by mu: number of open connections that Exclude took out of the count
	open     map[net.Conn]*connection       // guarded by mu
	waiting  map[netip.Addr]*waitingAddress // guarded by mu: the addresses in crowds
	crowds   waitingHeap                    // guarded by mu: addresses with waiting connections
}

// connection is an open connection.
type connection struct {
	from  netip.Addr
	place *list.Element // element in the list of its address's waiting connections; nil while a request runs
}

// NewConnections sets the limit of open connections to most, at least 1.
func NewConnections(most int) *Connections {
	return &Connections{most: most, open: make(map[net.Conn]*connection), waiting: make(map[netip.Addr]*waitingAddress)}
}

// Track is the ConnState hook of an [http.Server].
func (c *Connections) Track(conn net.Conn, state http.ConnState) {
	if crowded := c.recordState(conn, state); crowded != nil {
		c.crowded.Add(1)
		rawConn(crowded).Close()
	}
}

// Crowded returns the number of connections that were closed because the limit was exceeded.
func (c *Connections) Crowded() int64 { return c.crowded.Load() }

// Exclude takes one connection with a running request out of the count until back is called. The
// caller limits such connections by another quota, and calls back once.
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

// recordState records the new state and returns the connection to close, or nil. It counts the
// returned connection as closed at once, although the server reports StateClosed later.
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

// addWaiting appends a connection to the waiting ones of its address. The caller holds mu.
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

// waitingAddress has the waiting connections of one address, the longest-waiting first.
type waitingAddress struct {
	from    netip.Addr
	waiting *list.List // of net.Conn; never empty while mu is free
	index   int        // index in the heap
}

// waitingHeap is a heap with the address with the most waiting connections at the top.
type waitingHeap []*waitingAddress

func (c waitingHeap) Len() int           { return len(c) }
func (c waitingHeap) Less(i, j int) bool { return c[i].waiting.Len() > c[j].waiting.Len() }
func (c waitingHeap) Swap(i, j int) {
	c[i], c[j] = c[j], c[i]
	c[i].index, c[j].index = i, j
}

// Push and Pop implement heap.Interface.
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

// rawConn returns the connection below TLS, whose Close never waits for the peer.
func rawConn(c net.Conn) net.Conn {
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok {
		return outer.NetConn()
	}
	return c
}
