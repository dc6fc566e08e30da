package authority

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// connections bounds how many are open at once. When there is one too many, the
// one that has waited longest without a request under way is closed, so that
// half-open connections cannot keep honest ones out.
type connections struct {
	most int

	mu      sync.Mutex
	open    int                        // guarded by mu
	waiting *list.List                 // guarded by mu: of net.Conn, longest first
	places  map[net.Conn]*list.Element // guarded by mu: where each stands in waiting
}

func newConnections(most int) *connections {
	return &connections{most: most, waiting: list.New(), places: make(map[net.Conn]*list.Element)}
}

// track is the ConnState of an http.Server.
func (c *connections) track(conn net.Conn, state http.ConnState) {
	if crowded := c.moved(conn, state); crowded != nil {
		rawConn(crowded).Close()
	}
}

// moved notes the new state and gives the connection to be closed, or nil.
func (c *connections) moved(conn net.Conn, state http.ConnState) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	if place := c.places[conn]; place != nil {
		c.waiting.Remove(place)
		delete(c.places, conn)
	}
	switch state {
	case http.StateNew:
		c.open++
		c.places[conn] = c.waiting.PushBack(conn)
	case http.StateIdle:
		c.places[conn] = c.waiting.PushBack(conn)
	case http.StateClosed, http.StateHijacked:
		c.open--
	}
	if longest := c.waiting.Front(); c.open > c.most && longest != nil {
		// Removed now, so that the next one too many finds another.
		c.waiting.Remove(longest)
		delete(c.places, longest.Value.(net.Conn))
		return longest.Value.(net.Conn)
	}
	return nil
}

// rawConn is the connection below TLS: closing it never waits for the peer.
func rawConn(c net.Conn) net.Conn {
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok {
		return outer.NetConn()
	}
	return c
}
