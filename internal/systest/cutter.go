package systest

import (
	"net"
	"sync"
)

// cutter is a listener that can reset all its connections at once.
type cutter struct {
	net.Listener

	mu    sync.Mutex // guards the fields below
	conns []net.Conn
	isOff bool
}

// Accept records the connection for cutAll.
func (c *cutter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns = append(c.conns, conn)
	if c.isOff {
		conn.Close()
	}
	return conn, nil
}

// cutAll resets all connections and accepts no further one.
func (c *cutter) cutAll() {
	c.Listener.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.isOff = true
	for _, conn := range c.conns {
		_ = conn.(*net.TCPConn).SetLinger(0) // fails if the connection is already closed
		conn.Close()
	}
}

func (c *cutter) isCut() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.isOff
}
