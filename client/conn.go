package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/cohort-tee/cohort/attest"
	"github.com/cohort-tee/cohort/identity"
)

// errCut is the read error of a connection that ends without a TLS close_notify: the
// peer crashed, or the network cut the response short.
var errCut = errors.New("connection cut without a TLS close")

// errNotNeeded is the error of a dial whose attempt already got a different connection.
var errNotNeeded = errors.New("connection no longer needed")

// conn is the TCP connection below TLS to a replica whose identity was checked. It
// counts the writes to the network. It returns an error when the connection ends without
// the peer's authenticated close, so that a truncated response is always detected. It
// carries one request at a time.
type conn struct {
	net.Conn
	pool    *pool
	replica *replica
	secured *tls.Conn // the TLS connection over this one
	peer    tls.ConnectionState
	retire  time.Time // from this time on, no further request uses it

	writes  atomic.Int64
	stopped atomic.Bool
	user    atomic.Pointer[attempt] // changed under pool.mu: nil while the connection is idle

	head attest.Digest // guarded by pool.mu: head of the policy under which the peer was checked
}

func (c *conn) Write(b []byte) (int, error) {
	if c.stopped.Load() {
		return 0, net.ErrClosed
	}
	c.writes.Add(1)
	if c.stopped.Load() { // stopped since the check above: wroteSince may have counted this write
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Write(b)
	if err != nil {
		c.failWith(err)
	}
	return n, err
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if errors.Is(err, io.EOF) {
		err = errCut
	}
	if err != nil {
		c.failWith(err)
	}
	return n, err
}

// failWith ends the attempt on a broken connection. Otherwise the transport could repeat
// the request by itself, on the same replica.
func (c *conn) failWith(err error) {
	c.stopped.Store(true) // so that a later TLS close_notify is not counted as part of a request
	if a := c.user.Load(); a != nil {
		a.cancel(err)
	}
}

func (c *conn) Close() error {
	c.pool.removeConn(c)
	return c.Conn.Close()
}

// wroteSince stops all further writes, then reports whether there was a write since the
// count was mark. Because writes stop first, a false result stays true.
func (c *conn) wroteSince(mark int64) bool {
	c.stopped.Store(true)
	return c.writes.Load() != mark
}

// reject closes a connection without writing to it. The transport then chooses a
// different connection for the request.
func (c *conn) reject() {
	c.stopped.Store(true)
	c.Conn.Close()
}

// newTransport makes the transport of a replica. dialReplica opens all its connections,
// whatever the address in the request's URL.
func (c *Client) newTransport(r *replica) *http.Transport {
	return &http.Transport{
		DialTLSContext:      func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dialReplica(ctx, r) },
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     idleTimeout,
		// A gzip response has no known length once it is decompressed; readWhole needs one.
		DisableCompression: true,
	}
}

// dialReplica connects to a replica for the attempt in ctx, and checks the replica's identity. At
// most maxDials run per replica at a time: a replica that is catching up on handshakes serves no
// requests. After dialWait an attempt dials anyway, so that stuck dials cannot block it. An attempt
// that got a different connection meanwhile does not dial.
func (c *Client) dialReplica(ctx context.Context, r *replica) (net.Conn, error) {
	if err := c.beginTask(); err != nil {
		return nil, err
	}
	defer c.tasks.Done()
	wait := time.NewTimer(dialWait)
	defer wait.Stop()
	select {
	case r.dialing <- struct{}{}:
		defer func() { <-r.dialing }()
	case <-wait.C:
	case <-c.lifetime.Done():
		return nil, ErrClosed
	}
	if a, ok := ctx.Value(attemptKey{}).(*attempt); ok && !a.needsConn() {
		return nil, errNotNeeded
	}
	opened, err := c.connect(r)
	if err != nil {
		return nil, err
	}
	return opened.secured, nil
}

// connect dials a replica and checks it under the newest trust. After a refusal it fetches
// trust again, because the policy may have changed, and dials once more if it has.
func (c *Client) connect(r *replica) (*conn, error) {
	ctx, cancel := context.WithTimeout(c.lifetime, dialTimeout)
	defer cancel()
	overdue := time.AfterFunc(stagger, func() { c.pool.addLate(r, 1) })
	defer func() {
		if !overdue.Stop() {
			c.pool.addLate(r, -1)
		}
	}()
	began := c.currentTime()
	trust := c.trust.Load()
	opened, err := c.connectUnder(ctx, trust, r)
	if isRefusal(err) {
		if newer := c.renewTrust(ctx, trust); !newer.sameAs(trust) {
			trust = newer
			opened, err = c.connectUnder(ctx, newer, r)
		}
	}
	if newest := c.trust.Load(); err == nil && !newest.sameAs(trust) { // policy changed during the handshake
		c.enforce(newest)
	}
	c.counters.dials.Add(1)
	if err != nil {
		c.pool.failed(r, began, c.currentTime())
		return nil, err
	}
	return opened, nil
}

// connectUnder dials a replica and checks its identity under trust.
func (c *Client) connectUnder(ctx context.Context, trust *Trust, r *replica) (*conn, error) {
	below, err := c.config.Dial(ctx, "tcp", r.address)
	if err != nil {
		return nil, err
	}
	opened := &conn{Conn: below, pool: c.pool, replica: r, head: trust.Policy().PolicyHead()}
	opened.secured = tls.Client(opened, c.tlsConfig(trust))
	if err := opened.secured.HandshakeContext(ctx); err != nil {
		below.Close()
		return nil, err
	}
	opened.peer = opened.secured.ConnectionState()
	leaf := opened.peer.PeerCertificates[0]
	opened.retire = leaf.NotAfter.Add(-retireBefore(leaf))
	if !c.pool.addConn(opened) {
		below.Close()
		return nil, ErrClosed
	}
	return opened, nil
}

// tlsConfig returns a TLS configuration whose handshake succeeds only with a unit of an
// identity that trust pins.
func (c *Client) tlsConfig(trust *Trust) *tls.Config {
	expect := func() identity.Expect { return trust.expect(c.currentTime()) }
	config := identity.ClientTLS(c.config.ServerName, trust.AuthorityRoot, expect)
	config.NextProtos = []string{"http/1.1"}
	return config
}
