package unit

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"sync"
)

// opened are the connections of a unit that last only while policy lets both ends have
// them: a certificate is checked in the handshake, and policy may cut it off later.
type opened struct {
	mu    sync.Mutex // guards conns
	conns map[lasting]struct{}
}

// lasting is a connection that may be cut off.
type lasting interface {
	// still refuses what the newest policy refuses of the other side.
	still() error
	// cut ends the connection.
	cut()
}

func (o *opened) add(c lasting) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conns == nil {
		o.conns = map[lasting]struct{}{}
	}
	o.conns[c] = struct{}{}
}

func (o *opened) remove(c lasting) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, c)
}

func (o *opened) all() []lasting {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Keys(o.conns))
}

// endCut ends the connections that the newest policy does not let the unit have: those
// with a peer that it cuts off, and all of a unit that it cuts off. A unit that needs no
// more than a newer certificate keeps its own.
func (u *Unit) endCut() {
	own := false
	if e := u.held.Load(); e != nil {
		renewed := e.facts
		renewed.Head = u.newest().Head()
		own = u.newest().CutOff(renewed, u.now()) != nil
	}
	for _, c := range u.opened.all() {
		if own || c.still() != nil {
			c.cut()
		}
	}
}

// Dial connects to an address with a configuration of [Unit.ClientTLS] or [Unit.PeerTLS],
// as a client. The connection ends as soon as the unit adopts a policy that refuses the
// other side or cuts the unit itself off, while one that a program makes with the
// configuration by itself is checked in its handshake only. It blocks until the handshake
// is complete, for at most 10 seconds, or until ctx is done.
func (u *Unit) Dial(ctx context.Context, config *tls.Config, address string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, headerTime)
	defer cancel()
	below, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	c := &called{Conn: below, of: &u.opened}
	secured := tls.Client(c, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		below.Close()
		return nil, err
	}
	state := secured.ConnectionState()
	c.check = func() error { return config.VerifyConnection(state) }
	u.opened.add(c)
	if err := c.still(); err != nil { // a policy was adopted meanwhile
		secured.Close()
		return nil, err
	}
	return secured, nil
}

// called is a connection below TLS that the unit has made.
type called struct {
	net.Conn
	of    *opened
	check func() error
}

func (c *called) still() error { return c.check() }

func (c *called) cut() { c.Conn.Close() }

// Close ends the connection.
func (c *called) Close() error {
	c.of.remove(c)
	return c.Conn.Close()
}
