package unit

import (
	"context"
	"crypto/tls"
	"maps"
	"net"
	"slices"
	"sync"
)

// connSet are the connections of a unit that last only while policy lets both ends have
// them: a certificate is checked in the handshake, and policy may cut it off later.
type connSet struct {
	mu    sync.Mutex // guards conns
	conns map[revocable]struct{}
}

// revocable is a connection that may be cut off.
type revocable interface {
	// still refuses what the newest policy refuses of the other side.
	checkStillAllowed() error
	// cut ends the connection.
	closeNow()
}

func (o *connSet) insert(c revocable) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conns == nil {
		o.conns = map[revocable]struct{}{}
	}
	o.conns[c] = struct{}{}
}

func (o *connSet) remove(c revocable) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.conns, c)
}

func (o *connSet) snapshot() []revocable {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Collect(maps.Keys(o.conns))
}

// closeRevoked ends the connections that the newest policy does not let the unit have: those
// with a peer that it cuts off, and all of a unit that it cuts off. A unit that needs no
// more than a newer certificate keeps its own.
func (u *Unit) closeRevoked() {
	own := false
	if e := u.enrolled.Load(); e != nil {
		renewed := e.facts
		renewed.Head = u.newest().PolicyHead()
		own = u.newest().CutOff(renewed, u.currentTime()) != nil
	}
	for _, c := range u.conns.snapshot() {
		if own || c.checkStillAllowed() != nil {
			c.closeNow()
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
	c := &outgoingConn{Conn: below, of: &u.conns}
	secured := tls.Client(c, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		below.Close()
		return nil, err
	}
	state := secured.ConnectionState()
	c.check = func() error { return config.VerifyConnection(state) }
	u.conns.insert(c)
	if err := c.checkStillAllowed(); err != nil { // a policy was adopted meanwhile
		secured.Close()
		return nil, err
	}
	return secured, nil
}

// outgoingConn is a connection below TLS that the unit has made.
type outgoingConn struct {
	net.Conn
	of    *connSet
	check func() error
}

func (c *outgoingConn) checkStillAllowed() error { return c.check() }

func (c *outgoingConn) closeNow() { c.Conn.Close() }

// Close ends the connection.
func (c *outgoingConn) Close() error {
	c.of.remove(c)
	return c.Conn.Close()
}
