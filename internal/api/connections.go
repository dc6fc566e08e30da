package api

import (
	"container/list"
	"net"
	"net/http"
	"sync"
)

// Connections bounds how many a server has open at once. When there is one too
// many, the one that has waited longest without a request under way is closed, so
// that half-open connections cannot keep honest ones out, nor fill the memory. It
// is safe for concurrent use.
type Connections struct {
	most int

	mu      sync.Mutex
	places  map[net.Conn]*list.Element // guarded by mu: all that are open, and where each waits; nil at work
	waiting *list.List                 // guarded by mu: of net.Conn, longest first
}

// NewConnections bounds them to most, which is at least 1.
func NewConnections(most int) *Connections {
	return &Connections{most: most, waiting: list.New(), places: make(map[net.Conn]*list.Element)}
}

// Track is the ConnState of an http.Server.
func (c *Connections) Track(conn net.Conn, state http.ConnState) {
	if crowded := c.moved(conn, state); crowded != nil {
		rawConn(crowded).Close()
	}
}

// moved notes the new state and gives the connection to be closed, or nil. One
// that was given counts as closed at once: its own goroutine says so later.
func (c *Connections) moved(conn net.Conn, state http.ConnState) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	place, open := c.places[conn]
	if !open && state != http.StateNew {
		return nil
	}
	if place != nil {
		c.waiting.Remove(place)
	}
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(c.places, conn)
	case http.StateActive:
		c.places[conn] = nil
	default:
		c.places[conn] = c.waiting.PushBack(conn)
	}
	longest := c.waiting.Front()
	if len(c.places) <= c.most || longest == nil {
		return nil
	}
	crowded := longest.Value.(net.Conn)
	c.waiting.Remove(longest)
	delete(c.places, crowded)
	return crowded
}

// rawConn is the connection below TLS: closing it never waits for the peer.
func rawConn(c net.Conn) net.Conn {
	if outer, ok := c.(interface{ NetConn() net.Conn }); ok {
		return outer.NetConn()
	}
	return c
}
