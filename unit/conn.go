package unit

import (
	"context"
	"crypto/tls"
	"io"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

// connSet contains a unit's open connections. A handshake verifies a certificate only once, but
// a later policy may cut off a peer or the unit, and the unit then closes the connection.
type connSet struct {
	mu    sync.Mutex // guards conns
	conns map[revocable]struct{}
}

// revocable is a connection that a newer policy may refuse.
type revocable interface {
	// checkStillAllowed returns an error if the newest policy refuses the peer.
	checkStillAllowed() error
	// closeNow ends the connection.
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

// listener wraps each accepted connection in a [conn].
type listener struct {
	net.Listener
	unit *Unit
}

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	made := &conn{Conn: c, unit: l.unit}
	l.unit.conns.insert(made)
	return made, nil
}

// conn is an accepted connection below TLS. It ends when a certificate of its handshake expires,
// or when policy cuts off the peer or the unit.
type conn struct {
	net.Conn
	unit *Unit

	mu     sync.Mutex  // guards the fields below
	served *enrolment  // enrolment whose certificate the handshake presented
	end    *time.Timer // closes the connection when a certificate expires
	peer   Peer        // peer that presented a certificate; verified only in a group
}

// setEnrolment records the enrolment of the handshake, and closes the connection after the time
// left.
func (c *conn) setEnrolment(e *enrolment, left time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.served, c.end = e, time.AfterFunc(left, func() { c.Conn.Close() })
}

// setPeer records the verified peer of the connection. The connection then ends when the first
// of both certificates expires.
func (c *conn) setPeer(p Peer, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.peer = p
	if c.end != nil && c.end.Stop() {
		left := min(p.NotAfter().Sub(now), c.served.notAfter.Sub(now))
		c.end = time.AfterFunc(left, func() { c.Conn.Close() })
	}
}

// checkStillAllowed returns an error if the newest policy cuts off the peer.
func (c *conn) checkStillAllowed() error {
	c.mu.Lock()
	peer := c.peer
	c.mu.Unlock()
	if !peer.Verified() {
		return nil
	}
	return c.unit.newest().CutOff(peer.Facts(), c.unit.currentTime())
}

func (c *conn) closeNow() { c.Conn.Close() }

// SetLinger sets SO_LINGER of the TCP connection: with 0, Close resets the connection.
func (c *conn) SetLinger(sec int) error {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		return tcp.SetLinger(sec)
	}
	return nil
}

func (c *conn) enrolment() *enrolment {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.served
}

// Read returns an error if TCP ends before TLS does. crypto/tls would treat it as a regular end,
// so any host on the path could truncate a message.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err == io.EOF {
		err = &net.OpError{Op: "read", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: errTruncated}
	}
	return n, err
}

// Close closes the connection and stops its timer.
func (c *conn) Close() error {
	c.unit.conns.remove(c)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.end != nil {
		c.end.Stop()
	}
	return c.Conn.Close()
}

// connKey is the context key of a request's [conn].
type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c.(*tls.Conn).NetConn())
}

// Dial connects to an address as a client, with a configuration of [Unit.ClientTLS] or
// [Unit.PeerTLS]. The connection ends as soon as the unit adopts a policy that refuses the peer
// or cuts off the unit itself. A connection that a program makes with the configuration on its
// own is checked only in its handshake. Dial blocks until the handshake is complete, for at most
// 10 seconds, or until ctx is done.
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
	if err := c.checkStillAllowed(); err != nil { // the unit may have adopted a policy in the meantime
		secured.Close()
		return nil, err
	}
	return secured, nil
}

// outgoingConn is a connection below TLS that [Unit.Dial] made.
type outgoingConn struct {
	net.Conn
	of    *connSet
	check func() error
}

func (c *outgoingConn) checkStillAllowed() error { return c.check() }

func (c *outgoingConn) closeNow() { c.Conn.Close() }

// Close closes the connection.
func (c *outgoingConn) Close() error {
	c.of.remove(c)
	return c.Conn.Close()
}
